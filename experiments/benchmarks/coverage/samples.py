"""Samples with a known truth: right answers of methods whose rates are given, to questions in clusters that are alike."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import norm

from pmemx.core.statistics import Interval, Statistic, Stratum, Sums
from pmemx.metric.sample import rates

Kind = Literal["rate", "difference", "recovery"]
SMALLEST, LARGEST = 4, 8
"""Questions of a cluster, drawn evenly."""


@dataclass(frozen=True)
class Case:
    """What is sampled, and what is asked of it.

    rates: of the method; of method and other; of method, base and oracle. A rate of 1 is right on every question.
    clusters: in each stratum. correlation: share of the latent variance that questions of a cluster have in common.
    shared: share of the latent variance that methods have in common: at 1 the method errs where the oracle does.
    """

    kind: Kind
    rates: tuple[float, ...]
    clusters: int
    correlation: float
    shared: float = 0.0
    strata: int = 1

    @property
    def truth(self) -> float:
        """The value that intervals ought to cover."""
        sums = np.array([[*self.rates, 1.0]]).T
        return float(STATISTICS[self.kind]([sums])[0])

    def draw(self, random: np.random.Generator) -> list[Stratum]:
        """One sample: right answers a cluster of every method, then the questions, in each stratum."""
        return [self._stratum(random, number) for number in range(self.strata)]

    def _stratum(self, random: np.random.Generator, number: int) -> Stratum:
        sizes = random.integers(SMALLEST, LARGEST + 1, self.clusters)
        asked = np.arange(LARGEST) < sizes[:, None]
        latent = self._latent(random)
        right = [
            ((effect < norm.ppf(rate)) & asked).sum(axis=1) for rate, effect in zip(self.rates, latent, strict=True)
        ]
        names = tuple(f"{number}/{cluster}" for cluster in range(self.clusters))
        return Stratum(np.stack([*right, sizes]).astype(float), names)

    def _latent(self, random: np.random.Generator) -> np.ndarray:
        """Standard normal effects, [method, cluster, question]."""

        def effect(questions: int) -> np.ndarray:
            common = random.normal(size=(1, self.clusters, questions))
            own = random.normal(size=(len(self.rates), self.clusters, questions))
            return np.sqrt(self.shared) * common + np.sqrt(1 - self.shared) * own

        return np.sqrt(self.correlation) * effect(1) + np.sqrt(1 - self.correlation) * effect(LARGEST)


def bounds(kind: Kind, strata: list[Stratum]) -> Interval:
    """The bounds that the metrics of this kind give."""
    if kind == "rate":
        return 0.0, 1.0
    if kind == "difference":
        return -1.0, 1.0
    gap = float(_gap([stratum.sums.sum(axis=1, keepdims=True) for stratum in strata])[0])
    return 1 - 1 / gap, 1 + 1 / gap


def _means(sums: Sums) -> np.ndarray:
    return np.mean([rates(stratum) for stratum in sums], axis=0)


def _gap(sums: Sums) -> np.ndarray:
    means = _means(sums)
    return means[2] - means[1]


def _difference(sums: Sums) -> np.ndarray:
    means = _means(sums)
    return means[0] - means[1]


STATISTICS: dict[Kind, Statistic] = {
    "rate": lambda sums: _means(sums)[0],
    "difference": _difference,
    "recovery": lambda sums: _difference(sums) / _gap(sums),
}
