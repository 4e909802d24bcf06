"""Recovery: how much of what perfect routing gains over the base a method gains."""

from dataclasses import dataclass

import numpy as np

from pmemx.core.evidence import Answer, Evidence
from pmemx.core.metric import Figure, Metric
from pmemx.core.statistics import Interval, Sums, estimate
from pmemx.metric.sample import (
    ALL,
    EXPERT,
    Score,
    aligned,
    expert_domains,
    figure,
    gap_of,
    last_stages,
    rates,
    score_stratum,
    systems,
)

Rows = list[tuple[Answer, ...]]


@dataclass(frozen=True, kw_only=True)
class Recovery(Metric):
    """`recovery/<score>/<method>/<domain>` = (method - base) / (oracle - base) on held-out questions, paired by question.

    1 is the oracle, 0 the base; below 0 a method harms. Methods are the systems and the last stage of growth. Scores are exact match or nats per token. Domain `all_domains` is
    the ratio of the two mean gains over the domains with an expert, each counting once. Method `experts_mean` is the
    mean over the experts of one expert that is always on. Left out where |oracle - base| < epsilon, in score units;
    without interval where a resample turns the sign of oracle - base.
    """

    score: Score = "exact"
    epsilon: float = 0.02
    seed: int = 0

    def __call__(self, evidence: Evidence) -> dict[str, Figure]:
        candidates = {method: [method] for method in [*systems(evidence), *last_stages(evidence)] if method != "base"}
        if evidence.experts:
            candidates["experts_mean"] = [EXPERT + expert for expert in evidence.experts]
        domains = [facts.name for facts in expert_domains(evidence)]
        figures: dict[str, Figure] = {}
        for method, members in candidates.items():
            parts = [aligned(evidence, [*members, "base", "oracle"], domain) for domain in domains]
            for label, chosen in [*zip(domains, ([part] for part in parts), strict=True), (ALL, parts)]:
                found = self._figure(evidence, chosen, method) if chosen and all(chosen) else None
                if found is not None:
                    figures[f"recovery/{self.score}/{method}/{label}"] = found
        return figures

    def _figure(self, evidence: Evidence, parts: list[Rows], method: str) -> Figure | None:
        strata = [score_stratum(evidence, rows, self.score) for rows in parts]
        base, oracle = (estimate(strata, lambda sums, row=row: _mean(sums, row)) for row in (-2, -1))
        if abs(oracle - base) < self.epsilon:
            return None

        def recovered(sums: Sums) -> np.ndarray:
            members = np.mean([rates(stratum)[:-2].mean(axis=0) for stratum in sums], axis=0)
            gap = _mean(sums, -1) - _mean(sums, -2)
            # A resample in which the oracle gains nothing makes the ratio meaningless: no interval, rather than a wild one.
            return (members - _mean(sums, -2)) / np.where(gap * (oracle - base) > 0, gap, np.nan)

        # A recovery is 1 - (oracle - method) / (oracle - base), and the oracle of one document may be right or wrong.
        low, high = (1 + end / abs(oracle - base) for end in gap_of(self.score))
        bounds: Interval | None = None if method == "oracle" else (low, high)
        return figure(strata, sum(map(len, parts)), recovered, bounds=bounds, floor=0.0, seed=self.seed)


def _mean(sums: Sums, method: int) -> np.ndarray:
    return np.mean([rates(stratum)[method] for stratum in sums], axis=0)
