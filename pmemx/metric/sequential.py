"""Growth one domain after another: the matrix R[i, j], final score, backward transfer and forgetting."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pmemx.core.evidence import DomainFacts, Evidence
from pmemx.core.metric import Figure, Metric
from pmemx.core.statistics import Statistic, Stratum, Sums
from pmemx.metric.sample import Score, aligned, figure, gap_of, mean_of, range_of, rate_of, rates, score_stratum


@dataclass(frozen=True, kw_only=True)
class Sequential(Metric):
    """R[i, j] is the score on held-out questions of domain j after growing on domains 1 to i of `Evidence.sequence`.

    A run is a prefix of methods `<run>/<number>`, one a domain of the sequence, ordered by number: "sequential" is one
    LoRA trained on, "bank" a bank that gains an expert (and its gate) a stage. Names: `sequential/<score>/<run>/...`
    `R/<i>/<domain>`, i from 1 to T; `seen/<i>` = (1/i) sum_{j<=i} R[i, j];
    `acc` = (1/T) sum_j R[T, j] and `bwt` = (1/(T-1)) sum_{j<T} (R[T, j] - R[j, j])  (Lopez-Paz & Ranzato 2017, arXiv:1706.08840);
    `forgetting` = (1/(T-1)) sum_{j<T} (max_{j<=l<T} R[l, j] - R[T, j])  (Chaudhry et al. 2018, arXiv:1801.10112).
    With score "loss", R and acc are nats per token; bwt and forgetting are taken of -R, so that forgetting stays positive when bad.
    The summaries need R[i, j] for every j <= i; bwt and forgetting need two stages.
    """

    runs: Sequence[str] = ("sequential", "bank", "bank_oracle")
    score: Score = "exact"
    seed: int = 0

    def __call__(self, evidence: Evidence) -> dict[str, Figure]:
        facts_of = {facts.name: facts for facts in evidence.domains}
        domains = [facts_of[name] for name in evidence.sequence if name in facts_of]
        figures: dict[str, Figure] = {}
        for run in self.runs:
            stages = _stages(evidence, run)
            if stages and len(stages) == len(evidence.sequence) == len(domains):
                figures |= self._run(evidence, f"sequential/{self.score}/{run}", stages, domains)
        return figures

    def _run(self, evidence: Evidence, prefix: str, stages: list[str], domains: list[DomainFacts]) -> dict[str, Figure]:
        figures: dict[str, Figure] = {}
        for i, stage in enumerate(stages, 1):
            for facts in domains:
                if rows := aligned(evidence, [stage], facts.name):
                    strata = [score_stratum(evidence, rows, self.score)]
                    figures[f"{prefix}/R/{i}/{facts.name}"] = self._figure(evidence, strata, len(rows), _last, [facts])
        since = [aligned(evidence, stages[j:], facts.name) for j, facts in enumerate(domains)]
        if not all(since):
            return figures
        strata, sizes = [score_stratum(evidence, rows, self.score) for rows in since], [len(rows) for rows in since]
        for i in range(1, len(stages) + 1):
            figures[f"{prefix}/seen/{i}"] = self._figure(
                evidence, strata[:i], sum(sizes[:i]), lambda sums, i=i: _after(sums, i), domains[:i]
            )
        figures[f"{prefix}/acc"] = self._figure(evidence, strata, sum(sizes), _last, domains)
        if len(stages) > 1:
            sign = 1.0 if self.score == "exact" else -1.0
            for name, statistic in (("bwt", _bwt), ("forgetting", _forgetting)):
                figures[f"{prefix}/{name}"] = figure(
                    strata[:-1],
                    sum(sizes[:-1]),
                    lambda sums, statistic=statistic: statistic([sign * rates(stratum) for stratum in sums]),
                    bounds=gap_of(self.score),
                    seed=self.seed,
                )
        return figures

    def _figure(
        self, evidence: Evidence, strata: list[Stratum], n: int, statistic: Statistic, domains: list[DomainFacts]
    ) -> Figure:
        teacher = [rate_of(evidence.rows("teacher", facts.name), self.score) for facts in domains]
        floor = mean_of([facts.chance for facts in domains]) if self.score == "exact" else None
        bounds = range_of(self.score)
        return figure(strata, n, statistic, bounds=bounds, floor=floor, ceiling=mean_of(teacher), seed=self.seed)


def _stages(evidence: Evidence, run: str) -> list[str]:
    numbered = [method.removeprefix(f"{run}/") for method in evidence.methods if method.startswith(f"{run}/")]
    return [f"{run}/{number}" for number in sorted((n for n in numbered if n.isdecimal()), key=int)]


def _last(sums: Sums) -> np.ndarray:
    return np.mean([rates(stratum)[-1] for stratum in sums], axis=0)


def _after(sums: Sums, i: int) -> np.ndarray:
    # Stratum j starts at stage j + 1, so stage i stands in row i - 1 - j.
    return np.mean([rates(stratum)[i - 1 - j] for j, stratum in enumerate(sums)], axis=0)


def _bwt(scores: list[np.ndarray]) -> np.ndarray:
    return np.mean([since[-1] - since[0] for since in scores], axis=0)


def _forgetting(scores: list[np.ndarray]) -> np.ndarray:
    return np.mean([since[:-1].max(axis=0) - since[-1] for since in scores], axis=0)
