import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmemx.core.statistics import (
    Statistic,
    Stratum,
    Sums,
    cluster_sums,
    count_clusters,
    estimate,
    interval,
    paired_difference,
    ratio,
    sign_flip,
    wilson,
)


def stratum(sums: np.ndarray | list[list[float]], domain: str = "law") -> Stratum:
    """Sums of clusters that are called after a domain, and so are shared with no other."""
    columns = np.asarray(sums, dtype=float)
    return Stratum(columns, tuple(f"{domain}/{k}" for k in range(columns.shape[1])))


rows = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.floats(-5, 5), st.floats(-5, 5)),
    min_size=2,
    max_size=30,
).filter(lambda found: len({group for group, _, _ in found}) > 1)


@settings(max_examples=25, deadline=None)
@given(rows, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_no_bit(found, random):
    shuffled = list(found)
    random.shuffle(shuffled)
    first, second = (paired_difference(*map(list, zip(*part, strict=True))) for part in (found, shuffled))
    assert first == second


@settings(max_examples=25, deadline=None)
@given(rows)
def test_a_method_does_not_differ_from_itself(found):
    groups, values, _ = map(list, zip(*found, strict=True))
    same = paired_difference(groups, values, values)
    assert (same.value, same.interval, same.p) == (0.0, (0.0, 0.0), 1.0)


@settings(max_examples=25, deadline=None)
@given(rows)
def test_swapping_the_methods_turns_the_sign(found):
    groups, first, second = map(list, zip(*found, strict=True))
    there, back = paired_difference(groups, first, second), paired_difference(groups, second, first)
    assert there.value == pytest.approx(-back.value, abs=1e-12)
    assert there.interval is not None and back.interval is not None
    assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]), abs=1e-9)
    assert there.p == back.p


@pytest.mark.parametrize(("clusters", "size"), [(6, 5), (20, 5)])
def test_the_interval_covers_the_truth_of_clustered_questions(clusters, size):
    truth, trials = 0.6, 200
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(trials):
        right = random.binomial(size, random.beta(3 * truth, 3 * (1 - truth), clusters))
        low, high = interval([stratum(np.stack([right, np.full(clusters, size)]))], resamples=400) or (1, 0)
        covered += low <= truth <= high
    # 0.95 less three standard errors of 200 trials is 0.90; questions taken as independent reach about 0.8 here.
    assert covered / trials >= 0.90


def _coverage(
    draw: Callable[[np.random.Generator], np.ndarray], truth: float, statistic: Statistic, low: float
) -> float:
    """Share of 300 samples whose interval holds the truth, for values from `low` to 1."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        ends = interval([stratum(draw(random))], statistic, bounds=(low, 1.0), resamples=400)
        covered += ends is not None and ends[0] <= truth <= ends[1]
    return covered / 300


def _right(random: np.random.Generator, sizes: np.ndarray, rate: float, correlation: float) -> np.ndarray:
    """Right answers a cluster, beta-binomial with this correlation of two questions of a cluster."""
    weight = 1 / correlation - 1
    return random.binomial(sizes, random.beta(rate * weight, (1 - rate) * weight, len(sizes)))


@pytest.mark.parametrize(("clusters", "rate", "correlation"), [(200, 0.995, 0.1), (50, 0.98, 0.4), (20, 0.95, 0.4)])
def test_the_interval_covers_a_rate_near_one(clusters, rate, correlation):
    def draw(random: np.random.Generator) -> np.ndarray:
        sizes = random.integers(4, 9, clusters)
        return np.stack([_right(random, sizes, rate, correlation), sizes])

    # 0.95 less three standard errors of 300 trials; percentiles alone reach 0.86 to 0.89 here.
    assert _coverage(draw, rate, ratio, 0.0) >= 0.912


def test_the_interval_covers_a_difference_of_two_rates_near_one():
    def draw(random: np.random.Generator) -> np.ndarray:
        sizes = random.integers(4, 9, 20)
        return np.stack([_right(random, sizes, rate, 0.2) for rate in (0.97, 0.98)] + [sizes])

    def difference(sums: Sums) -> np.ndarray:
        return (sums[0][0] - sums[0][1]) / sums[0][2]

    assert _coverage(draw, -0.01, difference, -1.0) >= 0.912


counts = st.lists(
    st.integers(1, 8).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), min_size=2, max_size=12
)


@settings(max_examples=50, deadline=None)
@given(counts)
def test_the_interval_of_a_rate_holds_it_and_stays_between_zero_and_one(found):
    sample = [stratum(np.transpose(found))]
    low, high = interval(sample, bounds=(0.0, 1.0), resamples=200) or (1.0, 0.0)
    assert 0.0 <= low <= estimate(sample) <= high <= 1.0


@settings(max_examples=25, deadline=None)
@given(counts)
def test_four_times_the_clusters_give_a_shorter_interval(found):
    once, more = (
        interval([stratum(np.tile(np.transpose(found), times))], bounds=(0.0, 1.0), resamples=500) for times in (1, 4)
    )
    assert once is not None and more is not None and more[1] - more[0] < once[1] - once[0]


def test_the_low_end_of_a_rate_near_one_is_the_score_bound_of_as_many_trials():
    """Clusters of one question: the effective sample is the sample, and scipy knows its score interval."""
    from scipy.stats import binomtest, norm, t

    right = np.array([0.0, 0.0] + [1.0] * 38)
    low, high = interval([stratum([right, np.ones(40)])], bounds=(0.0, 1.0), resamples=9999) or (0, 0)
    level = 1 - 2 * norm.sf(t.ppf(0.975, 39) * math.sqrt(40 / 39))
    score = binomtest(38, 40).proportion_ci(confidence_level=level, method="wilson")
    assert low == pytest.approx(score.low, abs=0.002) and high == 1.0
    percentiles = interval([stratum([right, np.ones(40)])], bounds=(-math.inf, math.inf)) or (0, 0)
    assert percentiles == pytest.approx((0.875, 1.0), abs=0.001) and score.low < 0.83


def test_bounds_leave_an_interval_in_the_middle_as_long_as_it_is():
    right = np.random.default_rng(3).binomial(6, 0.5, 200)
    sample = [stratum([right, [6.0] * 200])]
    with_bounds, without = interval(sample, bounds=(0.0, 1.0)) or (0, 0), interval(sample) or (0, 0)
    assert with_bounds == pytest.approx(without, abs=0.002)


def test_ignoring_clusters_would_claim_too_much():
    right = [float(cluster < 5) for cluster in range(10) for _ in range(8)]
    by_document = interval([cluster_sums([str(k // 8) for k in range(80)], right, [1.0] * 80)])
    by_question = interval([cluster_sums([str(k) for k in range(80)], right, [1.0] * 80)])
    assert by_document is not None and by_question is not None
    assert by_document[1] - by_document[0] > 2 * (by_question[1] - by_question[0])


def test_sums_by_cluster_by_hand():
    sums = cluster_sums(["b", "a", "b"], [1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    assert sums.sums.tolist() == [[2.0, 4.0], [1.0, 2.0]] and sums.clusters == ("a", "b")
    assert sums.of(1).sums.tolist() == [[1.0, 2.0]]
    assert estimate([sums]) == 2.0


def test_each_stratum_counts_once():
    small, large = stratum([[1.0], [1.0]]), stratum([[0.0] * 9, [1.0] * 9], "tax")
    assert estimate([small, large]) == 0.5


def test_strata_of_the_same_clusters_are_resampled_together():
    """Two trainings that answer alike say as much as one; two that err on different documents say more than one."""
    first = np.random.default_rng(5).random((2, 30)) + 1.0
    once, twice = stratum(first), [stratum(first), stratum(first)]
    assert interval(twice) == pytest.approx(interval([once])) and count_clusters(twice) == 30
    apart = [stratum(first), stratum(first, "tax")]
    assert _width(apart) < 0.85 * _width(twice) and count_clusters(apart) == 60
    opposed = [stratum(np.stack([[0.0, 1.0] * 9, [1.0] * 18])), stratum(np.stack([[1.0, 0.0] * 9, [1.0] * 18]))]
    assert interval(opposed) == (0.5, 0.5)
    agreeing = [stratum(np.ones((2, 12))), stratum(np.ones((2, 12)))]
    assert interval(agreeing, bounds=(0.0, 1.0)) == pytest.approx(wilson(12, 12))


def _width(strata: list[Stratum]) -> float:
    low, high = interval(strata) or (0.0, 0.0)
    return high - low


def test_full_agreement_gives_the_wilson_interval_on_clusters():
    perfect = np.array([[5.0] * 12, [5.0] * 12])
    assert interval([stratum(perfect)], bounds=(0.0, 1.0)) == pytest.approx(wilson(12, 12))
    assert interval([stratum(perfect * [[0], [1]])], bounds=(0.0, 1.0)) == pytest.approx(wilson(0, 12))


def agreeing(*sizes: int, value: float = 1.0) -> list[Stratum]:
    """Strata in which every cluster has one row of this value."""
    return [
        cluster_sums([f"{number}/{i}" for i in range(size)], [value] * size, [1.0] * size)
        for number, size in enumerate(sizes)
    ]


def test_a_small_stratum_counts_as_much_as_a_large_one_and_is_as_uncertain_as_it_is_small():
    """8 and 300 clusters, all right: the average is as certain as 1 / ((1/8 + 1/300) / 4) trials, not as 308."""
    low, high = interval(agreeing(8, 300), bounds=(0.0, 1.0))
    trials = 4 / (1 / 8 + 1 / 300)
    assert (low, high) == pytest.approx(wilson(trials, trials))
    assert low < 0.9


def test_clusters_of_unequal_sizes_are_fewer_trials():
    """One cluster of ten rows and ten of one: (20)^2 / (100 + 10) trials."""
    groups = ["big"] * 10 + [f"small {i}" for i in range(10)]
    stratum = cluster_sums(groups, [1.0] * 20, [1.0] * 20)
    trials = 400 / 110
    assert interval([stratum], bounds=(0.0, 1.0)) == pytest.approx(wilson(trials, trials))


@pytest.mark.parametrize(
    ("sizes", "rates"), [((6, 300), (0.95, 0.95)), ((8, 300), (0.9, 0.99)), ((8, 8, 100, 100), (0.97,) * 4)]
)
def test_strata_of_unequal_sizes_are_covered(sizes, rates):
    """200 samples; a coverage of 0.95 would give fewer than 178 once in ten thousand."""
    draw, truth, inside = np.random.default_rng(0), float(np.mean(rates)), 0
    for _ in range(200):
        strata = [
            cluster_sums(
                [f"{s}/{i}" for i in range(size)], (draw.random(size) < rate).astype(float).tolist(), [1.0] * size
            )
            for s, (size, rate) in enumerate(zip(sizes, rates, strict=True))
        ]
        low, high = interval(strata, bounds=(0.0, 1.0), resamples=400)
        inside += low <= truth <= high
    assert inside >= 178


def test_agreement_without_bounds_is_a_point_and_with_infinite_ones_nothing():
    even = stratum([[2.0, 2.0], [1.0, 1.0]])
    assert interval([even]) == (2.0, 2.0)
    assert interval([even], bounds=(0.0, math.inf)) is None


def test_a_single_cluster_has_no_interval_and_no_p_value():
    one = paired_difference(["a", "a"], [0.0, 0.0], [1.0, 0.0])
    assert (one.value, one.interval, one.p, one.clusters) == (0.5, None, None, 1)
    assert interval([stratum(np.ones((2, 3))), stratum(np.ones((2, 1)), "tax")]) is None


def test_a_statistic_that_is_not_finite_has_no_interval():
    assert interval([stratum([[1.0, 1.0], [0.0, 1.0]])]) is None


def test_two_clusters_span_both_of_them():
    assert interval([stratum([[0.0, 1.0], [1.0, 1.0]])]) == (0.0, 1.0)


def test_the_seed_decides_the_interval():
    sample = [stratum(np.random.default_rng(1).random((2, 9)))]
    assert interval(sample, seed=3) == interval(sample, seed=3)
    assert interval(sample, seed=3) != interval(sample, seed=4)


def test_wilson_by_hand():
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    with pytest.raises(ValueError, match="no proportion"):
        wilson(3, 2)


def test_wilson_matches_scipy():
    from scipy.stats import binomtest

    for successes, n in ((0, 7), (3, 9), (50, 50)):
        reference = binomtest(successes, n).proportion_ci(method="wilson")
        assert wilson(successes, n) == pytest.approx((reference.low, reference.high))


def test_sign_flips_are_counted_exactly_when_clusters_are_few():
    # Of the 16 sign patterns only the two with equal signs reach a total of 4.
    assert sign_flip([1.0, 1.0, 1.0, 1.0]) == pytest.approx(2 / 16)


def test_p_values_are_uniform_where_nothing_differs():
    random = np.random.default_rng(5)
    found = [sign_flip(random.normal(size=12).tolist(), resamples=499) for _ in range(200)]
    assert np.mean([p is not None and p <= 0.05 for p in found]) <= 0.1


def test_the_percentile_interval_of_many_clusters_approaches_the_normal_one():
    sample = np.random.default_rng(2).random(400)
    low, high = interval([stratum(np.stack([sample, np.ones(400)]))], resamples=4000) or (0, 0)
    half = 1.96 * sample.std() / 20
    assert (low, high) == pytest.approx((sample.mean() - half, sample.mean() + half), abs=0.004)


def test_ratio_averages_the_ratios_of_strata():
    assert ratio([np.array([[1.0], [2.0]]), np.array([[3.0], [4.0]])]).tolist() == [0.625]
