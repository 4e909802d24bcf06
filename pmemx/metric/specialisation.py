"""Specialisation: what each expert knows of each domain, and whether it is the best on its own."""

from dataclasses import dataclass

import numpy as np

from pmemx.core.evidence import DomainFacts, Evidence
from pmemx.core.metric import Figure, Metric
from pmemx.core.statistics import Stratum, Sums
from pmemx.metric.sample import (
    EXPERT,
    Score,
    aligned,
    expert_domains,
    figure,
    gap_of,
    mean_of,
    range_of,
    rate_of,
    rates,
    score_stratum,
)


@dataclass(frozen=True, kw_only=True)
class Specialisation(Metric):
    """The matrix E[i, j], score of expert i alone on held-out questions of domain j, and what it says.

    Names start with `specialisation/<score>/`. `matrix/<expert>/<domain>` is E[i, j]. `gain/<expert>/<domain>` is
    G[i, j] = E[i, j] - base[j], paired by question; for score "loss" it is base[j] - E[i, j], so that more is better.
    Over the domains with an expert, where o(j) is the expert of domain j:
    `own` = mean_j E[o(j), j]; `diagonal` = mean_j G[o(j), j]; `off_diagonal` = mean_j mean_{i != o(j)} G[i, j];
    `index` = diagonal - off_diagonal; `own_is_best` = share of domains with o(j) = argmax_i G[i, j], a tie of k
    experts counting 1/k, with floor 1/experts. These need every expert measured on every domain that has one.
    """

    score: Score = "exact"
    seed: int = 0

    def __call__(self, evidence: Evidence) -> dict[str, Figure]:
        figures = {}
        for facts in evidence.domains:
            for expert in evidence.experts:
                figures |= self._cell(evidence, expert, facts)
        experts = [EXPERT + expert for expert in evidence.experts]
        domains = expert_domains(evidence)
        rows = [aligned(evidence, [*experts, "base"], facts.name) for facts in domains]
        if rows and all(rows):
            strata = [score_stratum(evidence, part, self.score) for part in rows]
            figures |= self._summary(evidence, domains, strata, sum(map(len, rows)))
        return figures

    def _cell(self, evidence: Evidence, expert: str, facts: DomainFacts) -> dict[str, Figure]:
        prefix, cell = f"specialisation/{self.score}", f"{expert}/{facts.name}"
        figures = {}
        if rows := aligned(evidence, [EXPERT + expert], facts.name):
            figures[f"{prefix}/matrix/{cell}"] = figure(
                [score_stratum(evidence, rows, self.score)],
                len(rows),
                bounds=range_of(self.score),
                floor=facts.chance if self.score == "exact" else None,
                ceiling=rate_of(evidence.rows("teacher", facts.name), self.score),
                seed=self.seed,
            )
        if rows := aligned(evidence, [EXPERT + expert, "base"], facts.name):
            figures[f"{prefix}/gain/{cell}"] = figure(
                [score_stratum(evidence, rows, self.score)],
                len(rows),
                lambda sums: self._gains(sums[0])[0],
                bounds=gap_of(self.score),
                seed=self.seed,
            )
        return figures

    def _gains(self, stratum: np.ndarray) -> np.ndarray:
        """Gain over the last method, [method, resample]."""
        scores = rates(stratum) if self.score == "exact" else -rates(stratum)
        return scores[:-1] - scores[-1]

    def _summary(
        self, evidence: Evidence, domains: list[DomainFacts], strata: list[Stratum], n: int
    ) -> dict[str, Figure]:
        own = [evidence.experts.index(facts.expert or "") for facts in domains]
        prefix = f"specialisation/{self.score}"

        def own_score(sums: Sums) -> np.ndarray:
            return np.mean([rates(s)[o] for o, s in zip(own, sums, strict=True)], axis=0)

        def diagonal(sums: Sums) -> np.ndarray:
            return np.mean([self._gains(s)[o] for o, s in zip(own, sums, strict=True)], axis=0)

        def off_diagonal(sums: Sums) -> np.ndarray:
            others = [np.delete(self._gains(s), o, axis=0) for o, s in zip(own, sums, strict=True)]
            return np.mean([gains.mean(axis=0) for gains in others], axis=0)

        def index(sums: Sums) -> np.ndarray:
            return diagonal(sums) - off_diagonal(sums)

        def own_is_best(sums: Sums) -> np.ndarray:
            best = [gains == gains.max(axis=0) for gains in map(self._gains, sums)]
            return np.mean([b[o] / b.sum(axis=0) for o, b in zip(own, best, strict=True)], axis=0)

        low, high = gap_of(self.score)
        figures = {
            f"{prefix}/own": figure(
                strata,
                n,
                own_score,
                bounds=range_of(self.score),
                floor=mean_of([facts.chance for facts in domains]) if self.score == "exact" else None,
                ceiling=mean_of([rate_of(evidence.rows("teacher", facts.name), self.score) for facts in domains]),
                seed=self.seed,
            ),
            f"{prefix}/diagonal": figure(strata, n, diagonal, bounds=(low, high), seed=self.seed),
        }
        if len(evidence.experts) == 1:
            return figures
        return figures | {
            f"{prefix}/off_diagonal": figure(strata, n, off_diagonal, bounds=(low, high), seed=self.seed),
            f"{prefix}/index": figure(strata, n, index, bounds=(2 * low, 2 * high), seed=self.seed),
            f"{prefix}/own_is_best": figure(
                strata, n, own_is_best, bounds=(0.0, 1.0), floor=1 / len(evidence.experts), seed=self.seed
            ),
        }
