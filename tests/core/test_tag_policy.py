"""A policy's verdict: laws of bounds, cases by hand, and its way through JSON."""

import json
import math
import sys
from dataclasses import replace
from subprocess import run

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmemx.core.errors import ConfigError
from pmemx.core.metric import Figure
from pmemx.core.tag_policy import Bound, TagPolicy, judge, policy_from, policy_values

# Sixty-fourths: far enough apart that rounding cannot reorder them.
numbers = st.integers(-512, 512).map(lambda n: n / 64)
widths = st.integers(0, 256).map(lambda n: n / 64)


@st.composite
def figures(draw: st.DrawFn) -> Figure:
    value = draw(numbers)
    if draw(st.booleans()):
        return Figure(value, n=draw(st.integers(0, 99)))
    return Figure(value, value - draw(widths), value + draw(widths), draw(st.integers(1, 99)), 2)


@st.composite
def bounds(draw: st.DrawFn) -> Bound:
    limits = draw(st.sampled_from([("at_most",), ("at_least",)]))
    made = {limit: draw(numbers) for limit in limits}
    judged = draw(st.sampled_from(["interval", "value"]))
    return Bound(metric=draw(st.sampled_from("abc")), relative=draw(st.booleans()), judged=judged, **made)


policies = st.lists(bounds(), max_size=4).map(lambda made: TagPolicy(bounds=tuple(made)))
measured = st.dictionaries(st.sampled_from("abc"), figures())
current = st.none() | measured


def shifted(figure: Figure, value: float, low: float, high: float) -> Figure:
    ends = {} if figure.low is None or figure.high is None else {"low": figure.low + low, "high": figure.high + high}
    return replace(figure, value=figure.value + value, **ends)


def wants(policy: TagPolicy, metric: str) -> int:
    """+1 where every bound on a metric asks for more of it, -1 for less, 0 where they disagree."""
    signs = {1 if bound.at_most is None else -1 for bound in policy.bounds if bound.metric == metric}
    return signs.pop() if len(signs) == 1 else 0


@given(policies, measured, current, st.tuples(widths, widths, widths))
def test_better_figures_are_never_refused_where_worse_ones_pass(policy, candidate, now, steps):
    better = {
        metric: shifted(figure, *(wants(policy, metric) * step for step in steps))
        for metric, figure in candidate.items()
    }
    if judge(policy, candidate, now).allowed:
        assert judge(policy, better, now).allowed


@given(policies, measured, measured, st.tuples(widths, widths, widths))
def test_a_worse_current_version_is_never_harder_to_follow(policy, candidate, now, steps):
    worse = {
        metric: shifted(figure, *(-wants(policy, metric) * step for step in steps)) for metric, figure in now.items()
    }
    if judge(policy, candidate, now).allowed:
        assert judge(policy, candidate, worse).allowed


@given(policies, measured, current)
def test_a_policy_is_met_where_each_of_its_bounds_is(policy, candidate, now):
    each = [judge(TagPolicy(bounds=(bound,)), candidate, now) for bound in policy.bounds]
    whole = judge(policy, candidate, now)
    assert whole.allowed is all(one.allowed for one in each)
    assert whole.findings == tuple(line for one in each for line in one.findings)


@given(policies, measured, current)
def test_what_was_not_measured_refuses(policy, candidate, now):
    missing = [bound for bound in policy.bounds if bound.metric not in candidate]
    if missing:
        verdict = judge(policy, candidate, now)
        assert not verdict.allowed
        assert sum("not measured; record it" in line for line in verdict.findings) == len(missing)


@given(policies, measured, current)
def test_the_value_alone_passes_wherever_its_interval_does(policy, candidate, now):
    by_value = TagPolicy(bounds=tuple(replace(bound, judged="value") for bound in policy.bounds))
    if judge(policy, candidate, now).allowed:
        assert judge(by_value, candidate, now).allowed


@given(policies)
def test_a_policy_survives_json(policy):
    assert policy_from(json.loads(json.dumps(policy_values(policy)))) == policy


LOST = Bound(metric="forgetting_general", at_most=0.05)
GAIN = Bound(metric="own_domain", at_least=-0.1, relative=True)


def test_the_pessimistic_end_decides_unless_the_value_is_asked_for():
    wide = {"forgetting_general": Figure(0.03, 0.01, 0.06, 40, 8)}
    assert judge(TagPolicy(bounds=(LOST,)), wide).findings == (
        "forgetting_general, at most 0.05: 0.03 [0.01, 0.06] (n 40, 8 groups); broken by the high end of its interval",
    )
    assert judge(TagPolicy(bounds=(replace(LOST, judged="value"),)), wide).allowed
    assert judge(TagPolicy(bounds=(replace(LOST, at_most=0.06),)), wide).allowed, "a limit is itself allowed"


def test_a_figure_without_an_interval_passes_by_value_alone():
    bare = {"forgetting_general": Figure(0.0, n=1, clusters=1)}
    assert judge(TagPolicy(bounds=(LOST,)), bare).findings == (
        "forgetting_general, at most 0.05: 0 (n 1, 1 groups); "
        "it has no interval, so ask more independent questions, or judge the value",
    )
    assert judge(TagPolicy(bounds=(replace(LOST, judged="value"),)), bare).allowed


def test_a_difference_joins_both_intervals_by_square_and_add():
    """1.0 [0.7, 1.4] after 0.9 [0.6, 1.3]: 0.1 - hypot(0.3, 0.4) = -0.4."""
    new, old = {"own_domain": Figure(1.0, 0.7, 1.4, 40, 8)}, {"own_domain": Figure(0.9, 0.6, 1.3, 30, 9)}
    verdict = judge(TagPolicy(bounds=(GAIN,)), new, old)
    assert verdict.findings == (
        "own_domain, at least -0.1 from the current version: 1 [0.7, 1.4] (n 40, 8 groups) after "
        "0.9 [0.6, 1.3] (n 30, 9 groups), a change of 0.1 [-0.4, 0.6] (n 30, 8 groups); "
        "broken by the low end of its interval",
    )
    assert judge(TagPolicy(bounds=(replace(GAIN, at_least=-0.41),)), new, old).allowed
    assert judge(TagPolicy(bounds=(replace(GAIN, judged="value"),)), new, old).allowed


def test_a_relative_bound_is_free_for_the_first_version_but_asks_that_it_was_measured():
    policy = TagPolicy(bounds=(GAIN,))
    assert judge(policy, {"own_domain": Figure(-9.0)}, None).allowed
    assert not judge(policy, {}, None).allowed
    assert "not measured for the current version" in judge(policy, {"own_domain": Figure(9.0)}, {}).findings[0]


@pytest.mark.parametrize("judged", ["interval", "value"])
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("limit", [{"at_most": 1.0}, {"at_least": -1.0}])
def test_nan_meets_no_bound(judged, relative, limit):
    policy = TagPolicy(bounds=(Bound(metric="a", relative=relative, judged=judged, **limit),))
    nan = Figure(math.nan, math.nan, math.nan, 9, 3)
    sound = Figure(0.0, -0.1, 0.1, 9, 3)
    assert judge(policy, {"a": sound}, {"a": sound}).allowed
    for candidate, now in ((nan, sound), (nan, None), (sound, nan)):
        if relative or candidate is nan:
            assert not judge(policy, {"a": candidate}, None if now is None else {"a": now}).allowed


def test_a_range_is_one_bound():
    policy = TagPolicy(bounds=(Bound(metric="a", at_least=0.0, at_most=1.0, judged="value"),))
    assert [judge(policy, {"a": Figure(value)}).allowed for value in (-0.1, 0.0, 1.0, 1.1)] == [
        False,
        True,
        True,
        False,
    ]


def test_absolute_leaves_relative_bounds_and_other_metrics_out():
    policy = TagPolicy(bounds=(LOST, GAIN, Bound(metric="kl", at_most=1.0)))
    assert [bound.metric for bound in policy.absolute().bounds] == ["forgetting_general", "kl"]
    assert [bound.metric for bound in policy.absolute({"kl", "own_domain"}).bounds] == ["kl"]


def test_no_bounds_let_everything_pass():
    assert judge(TagPolicy(), {}).allowed


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"metric": "a"}, "'a' has no limit; give at_most, at_least, or both"),
        ({"metric": "a", "at_most": math.inf}, "a limit is a finite number"),
        ({"metric": " ", "at_most": 1.0}, "names no metric"),
    ],
)
def test_a_bound_that_asks_nothing_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        Bound(**settings)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"bounds": [{"metric": "a"}]},
        {"bounds": [{"metric": "a", "most": 1}]},
        {"bounds": [], "name": "x"},
        {"bounds": [3]},
        {"bounds": [{"metric": "a", "at_most": "1"}]},
    ],
)
def test_what_is_no_policy_is_refused(values):
    with pytest.raises(ConfigError):
        policy_from(values)


def test_policies_need_no_torch():
    code = "import sys, pmemx.store.evaluations; sys.exit('torch' in sys.modules)"
    assert run([sys.executable, "-c", code]).returncode == 0
