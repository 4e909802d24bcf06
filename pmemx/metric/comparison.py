"""Comparison: the paired difference of two systems on the same questions, with a permutation test."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pmemx.core.evidence import Evidence
from pmemx.core.metric import Figure, Metric
from pmemx.core.statistics import Sums, sign_flip
from pmemx.metric.sample import ALL, Score, aligned, expert_domains, figure, gap_of, rates, score_stratum, systems


@dataclass(frozen=True, kw_only=True)
class Comparison(Metric):
    """`comparison/<score>/<method>-<reference>/<domain>`: method minus reference on held-out questions, in score units.

    Domain `all_domains` averages the domains with an expert, each counting once. A second figure `.../p` is the
    two-sided p-value of a test that flips the sign of each cluster's difference; it is exploratory, uncorrected for the number of comparisons.
    """

    references: Sequence[str] = ("oracle",)
    score: Score = "exact"
    seed: int = 0

    def __call__(self, evidence: Evidence) -> dict[str, Figure]:
        figures: dict[str, Figure] = {}
        domains = [facts.name for facts in expert_domains(evidence)]
        for reference in self.references:
            for method in systems(evidence):
                if method == reference:
                    continue
                for label, chosen in [(name, [name]) for name in domains] + [(ALL, domains)]:
                    parts = [aligned(evidence, [method, reference], domain) for domain in chosen]
                    if not parts or not all(parts):
                        continue
                    strata = [score_stratum(rows, self.score) for rows in parts]
                    name = f"comparison/{self.score}/{method}-{reference}/{label}"
                    n = sum(map(len, parts))
                    figures[name] = figure(strata, n, _difference, bounds=gap_of(self.score), seed=self.seed)
                    flips = np.concatenate([(s[0] - s[1]) / s[2].sum() for s in strata])
                    p = sign_flip(flips.tolist(), seed=self.seed)
                    if p is not None:
                        figures[f"{name}/p"] = Figure(p, n=n, clusters=len(flips))
        return figures


def _difference(sums: Sums) -> np.ndarray:
    return np.mean([scores[0] - scores[1] for scores in map(rates, sums)], axis=0)
