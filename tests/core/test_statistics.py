import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmemx.core.statistics import (
    Stratum,
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
