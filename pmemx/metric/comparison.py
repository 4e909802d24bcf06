"""Comparison: the paired difference of two systems on the same questions, with a permutation test."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pmemx.core.evidence import Evidence
from pmemx.core.metric import Figure, Metric
from pmemx.core.statistics import Stratum, Sums, sign_flip
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
                    strata = [score_stratum(evidence, rows, self.score) for rows in parts]
                    name = f"comparison/{self.score}/{method}-{reference}/{label}"
                    n = sum(map(len, parts))
                    figures[name] = figure(strata, n, _difference, bounds=gap_of(self.score), seed=self.seed)
                    flips = _by_cluster(strata)
                    p = sign_flip(flips, seed=self.seed)
                    if p is not None:
                        figures[f"{name}/p"] = Figure(p, n=n, clusters=len(flips))
        return figures


def _by_cluster(strata: Sequence[Stratum]) -> list[float]:
    """What each cluster adds to the difference, over the strata that share it."""
    shared: dict[str, list[float]] = {}
    for stratum in strata:
        first, second, units = stratum.sums
        for cluster, share in zip(stratum.clusters, (first - second) / units.sum(), strict=True):
            shared.setdefault(cluster, []).append(float(share))
    return [math.fsum(shares) for shares in shared.values()]


def _difference(sums: Sums) -> np.ndarray:
    return np.mean([scores[0] - scores[1] for scores in map(rates, sums)], axis=0)
