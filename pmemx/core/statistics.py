"""Intervals and tests for clustered, paired evaluations: questions about one document are not independent (arXiv:2411.00640)."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy import stats

Interval = tuple[float, float]
Sums = list[Float[np.ndarray, "_column resample"]]
Statistic = Callable[[Sums], Float[np.ndarray, " resample"]]


@dataclass(frozen=True, eq=False)
class Stratum:
    """Sums over the rows of each cluster, and what the clusters are called; strata differ in both dimensions."""

    sums: Float[np.ndarray, "_column _cluster"]
    clusters: tuple[str, ...]

    def of(self, *columns: int) -> "Stratum":
        """These columns alone."""
        return Stratum(self.sums[list(columns)], self.clusters)


def cluster_sums(groups: Sequence[str], *columns: Sequence[float]) -> Stratum:
    """Sum of each column over the rows of each group, groups in sorted order.

    The sums are correctly rounded, so that the order of rows cannot change a bit of what follows.
    """
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    names = sorted(members)
    sums = [[math.fsum(column[row] for row in members[group]) for group in names] for column in columns]
    return Stratum(np.array(sums, dtype=float).reshape(len(columns), len(members)), tuple(names))


def ratio(sums: Sums) -> Float[np.ndarray, " resample"]:
    """Column 0 over column 1, averaged over the strata: the score of each domain, each domain counting once."""
    return np.mean([stratum[0] / stratum[1] for stratum in sums], axis=0)


def estimate(strata: Sequence[Stratum], statistic: Statistic = ratio) -> float:
    """The statistic of the whole sample."""
    return float(statistic([stratum.sums.sum(axis=1, keepdims=True) for stratum in strata])[0])


def interval(
    strata: Sequence[Stratum],
    statistic: Statistic = ratio,
    *,
    bounds: Interval | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """Interval of a statistic of sums from a bootstrap that resamples whole clusters within each stratum.

    Each end is the farther one of two intervals. The percentiles of the bootstrap are as skewed as the sample. The Wilson
    interval at the effective sample size (Franco et al. 2019, PMC6690503) is as skewed as the bounds demand. Near a
    bound the sample often lacks the few clusters that show how far away the truth can be, and percentiles alone are
    short. experiments/benchmarks/coverage measures both, and says where the interval is still short.

    All columns of a cluster move together, so differences between methods are paired. Strata of the very same clusters
    are resampled together: the same documents, read by several trainings, are no new documents. Quantiles are widened to
    the t distribution and by n/(n-1), without which the interval of a few clusters is too short (Hesterberg 2015,
    arXiv:1411.5279, section 5.3).

    bounds: the least and the greatest value that one cluster can have. Where one of them is infinite the percentiles stand
    alone, and are short for a heavy-tailed loss on few clusters. When every cluster of every stratum agrees with its stratum the
    bootstrap collapses to a point, which claims too much; with bounds the answer is then what the share w of
    disagreeing clusters can still do, w being the Wilson bound on 0 of n independent trials (for a rate of 0 or 1 this
    is the Wilson interval on n); None if a bound is infinite. Without bounds the point stands: give none only where
    agreement is certain by construction. n is that of an average in which each stratum counts once, whatever its size:
    the number of clusters where strata and clusters are of one size, and less where a few clusters are a whole stratum.

    None where no interval can be given: a stratum with a single cluster, or a resample for which the statistic is
    not finite.
    """
    drawn = tuple(dict.fromkeys(stratum.clusters for stratum in strata))
    sizes = [len(clusters) for clusters in drawn]
    if not sizes or min(sizes) < 2:
        return None

    def resampled(*indices: np.ndarray, axis: int) -> np.ndarray:
        # scipy resamples positions of clusters: sums are then exact for any number of columns, paired by position.
        of = {clusters: np.atleast_2d(rows).T for clusters, rows in zip(drawn, indices, strict=True)}
        with np.errstate(divide="ignore", invalid="ignore"):
            found = statistic([stratum.sums[:, of[stratum.clusters]].sum(axis=1) for stratum in strata])
        return np.where(np.isfinite(found), found, np.nan)

    widened = _widened(confidence, tuple(sizes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # answered below, by None
        found = stats.bootstrap(
            [np.arange(size) for size in sizes],
            resampled,
            n_resamples=resamples,
            vectorized=True,
            method="percentile",
            confidence_level=widened,
            rng=np.random.default_rng(seed),
        )
    if not np.isfinite(found.bootstrap_distribution).all():
        return None
    low, high = (float(np.squeeze(end)) for end in found.confidence_interval)
    if bounds is None:
        return low, high
    if high - low <= 1e-12 * max(1.0, abs(low)):
        share = wilson(0, _trials(strata), confidence=confidence)[1]
        low, high = low - share * max(0.0, low - bounds[0]), high + share * max(0.0, bounds[1] - high)
        return (low, high) if math.isfinite(low) and math.isfinite(high) else None
    if math.isfinite(bounds[0]) and math.isfinite(bounds[1]):
        variance = float(np.squeeze(found.standard_error)) ** 2 + (bounds[1] - bounds[0]) ** 2 * _unseen_variance(
            strata
        )
        least, most = _effective_wilson(estimate(strata, statistic), variance, bounds, _trials(strata), widened)
        return min(low, least), max(high, most)
    return low, high


def _effective_wilson(value: float, variance: float, bounds: Interval, least: float, confidence: float) -> Interval:
    """Wilson interval of a bounded value on as many independent trials as would give it this variance.

    A rate varies at most as if every cluster answered alike, so there are at least `least` trials (`_trials`). What varies
    more is no rate, and for it the percentiles tell how far.
    """
    low, width = bounds[0], bounds[1] - bounds[0]
    rate = min(max((value - low) / width, 0.0), 1.0)
    trials = max(rate * (1 - rate) * width**2 / variance, least)
    lower, upper = wilson(rate * trials, trials, confidence=confidence)
    return low + width * lower, low + width * upper


def _by_clusters(strata: Sequence[Stratum]) -> list[tuple[float, list[Stratum]]]:
    """Strata of the very same clusters together, with their share of the average over all strata."""
    together: dict[tuple[str, ...], list[Stratum]] = {}
    for stratum in strata:
        together.setdefault(stratum.clusters, []).append(stratum)
    return [(len(of) / len(strata), of) for of in together.values()]


def _trials(strata: Sequence[Stratum]) -> float:
    """As many independent trials of one rate as vary like the average over strata, if the rows of a cluster agree.

    Kish's effective number of each stratum's clusters, which may be of different sizes: the last column holds these.
    """
    total = 0.0
    for share, (stratum, *_) in _by_clusters(strata):
        units = np.abs(stratum.sums[-1])
        number = units.sum() ** 2 / (units**2).sum() if units.any() else len(units)
        total += share**2 / number
    return 1 / total


def _unseen_variance(strata: Sequence[Stratum]) -> float:
    """What strata whose clusters all agree, and which a bootstrap takes for certain, add to the variance of the average.

    In squared widths of the bounds; by the rule of Agresti and Coull, two clusters of four more disagree.
    """
    total = 0.0
    for share, of in _by_clusters(strata):
        units = of[0].sums[-1]
        alike = bool(units.all()) and all(np.ptp(one.sums / units, axis=1).max() <= 1e-12 for one in of)
        if alike:
            number = len(units) + 4
            total += share**2 * (2 / number) * (1 - 2 / number) / number
    return total


def count_clusters(strata: Sequence[Stratum]) -> int:
    """Clusters of all strata, those that several of them share counting once."""
    return sum(map(len, {stratum.clusters for stratum in strata}))


@lru_cache(maxsize=4096)
def _widened(confidence: float, sizes: tuple[int, ...]) -> float:
    freedom = sum(sizes) - len(sizes)
    quantile = stats.t.ppf((1 + confidence) / 2, freedom) * math.sqrt(sum(sizes) / freedom)
    return min(float(1 - 2 * stats.norm.sf(quantile)), 1 - 1e-9)


def wilson(successes: float, n: float, *, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a proportion of n independent trials."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials is no proportion; give 0 <= successes <= n and n >= 1")
    z2 = float(stats.norm.ppf((1 + confidence) / 2)) ** 2
    centre = successes + z2 / 2
    half = math.sqrt(z2 * (successes * (n - successes) / n + z2 / 4))
    return max(0.0, (centre - half) / (n + z2)), min(1.0, (centre + half) / (n + z2))


def sign_flip(differences: Sequence[float], *, resamples: int = 9999, seed: int = 0) -> float | None:
    """Two-sided p-value of "the sign of each cluster's summed difference is a coin flip".

    Exact while 2^clusters is at most `resamples`, otherwise by that many random flips. None with a single cluster.
    """
    if len(differences) < 2:
        return None
    total = stats.permutation_test(
        (np.asarray(differences, dtype=float),),
        lambda sample, axis: sample.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        alternative="two-sided",
        rng=np.random.default_rng(seed),
    )
    return min(1.0, float(total.pvalue))


@dataclass(frozen=True)
class Difference:
    """Second minus first on the same questions, per unit of the denominator, with interval and p-value."""

    value: float
    interval: Interval | None
    p: float | None
    n: int
    clusters: int


def paired_difference(
    groups: Sequence[str],
    first: Sequence[float],
    second: Sequence[float],
    units: Sequence[float] | None = None,
    *,
    bounds: Interval | None = None,
    seed: int = 0,
) -> Difference:
    """Sum of second minus first over the sum of units (1 a question unless given, tokens for a loss).

    Row k of both is the same question. The interval resamples groups, the p-value flips the signs of groups.
    bounds as in `interval`; without them the difference of a method with itself is 0 with interval (0, 0).
    """
    units = [1.0] * len(groups) if units is None else units
    gaps = [b - a for a, b in zip(first, second, strict=True)]
    sums = cluster_sums(groups, gaps, units)
    return Difference(
        estimate([sums]),
        interval([sums], bounds=bounds, seed=seed),
        sign_flip(sums.sums[0].tolist(), seed=seed),
        len(groups),
        len(sums.clusters),
    )
