"""The commit gate: bounds on recorded figures that a version must meet before it may take a tag; imports no torch."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pmemx.core.errors import ConfigError
from pmemx.core.metric import Figure


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A demand on the figure of one metric. at_most, at_least: its limits, themselves allowed; give one or both.

    judged: "interval" asks the pessimistic end of the 95 % interval, the high one for at_most and the low one for
    at_least, so that what few questions tell does not pass, and a figure without an interval refuses. "value" asks the
    value alone, however few questions it rests on. n and clusters are told and count only through the interval.
    relative: the limits hold for the figure minus that of the version that the tag points at, or pointed at last. The
    interval of that difference joins both intervals by square-and-add (Zou and Donner 2008, doi:10.1002/sim.3095) as if they were
    independent; on the same questions it is too wide, which errs towards refusing. While the tag
    pointed at no other version yet, a relative bound asks only that the figure was measured.
    """

    metric: str
    at_most: float | None = None
    at_least: float | None = None
    relative: bool = False
    judged: Literal["interval", "value"] = "interval"

    def __post_init__(self) -> None:
        limits = [limit for limit in (self.at_most, self.at_least) if limit is not None]
        if not limits:
            raise ConfigError(f"the bound on {self.metric!r} has no limit; give at_most, at_least, or both")
        if not all(math.isfinite(limit) for limit in limits):
            raise ConfigError(f"the bound on {self.metric!r} has the limits {limits}; a limit is a finite number")
        if not self.metric.strip():
            raise ConfigError("a bound names no metric; give the name under which its figure is recorded")
        if self.judged not in ("interval", "value"):
            raise ConfigError(f"the bound on {self.metric!r} is judged by {self.judged!r}; choose interval or value")


@dataclass(frozen=True, kw_only=True)
class TagPolicy:
    """What a version must meet to take a tag: every bound. Without bounds, anything may."""

    bounds: tuple[Bound, ...] = ()

    def absolute(self, metrics: Collection[str] | None = None) -> "TagPolicy":
        """Only the bounds that need no other version; where metrics are given, only those on them."""
        return TagPolicy(
            bounds=tuple(
                bound for bound in self.bounds if not bound.relative and (metrics is None or bound.metric in metrics)
            )
        )


@dataclass(frozen=True)
class Verdict:
    """The answer, and one line a bound with its figure, whether it is met or not."""

    allowed: bool
    findings: tuple[str, ...]


def judge(policy: TagPolicy, candidate: Mapping[str, Figure], current: Mapping[str, Figure] | None = None) -> Verdict:
    """Whether a version with the candidate's figures meets every bound.

    current: figures of the version that the tag points at, or pointed at last, None where there is none. What was not
    measured, and NaN, refuses.
    """
    found = [_judged(bound, candidate.get(bound.metric), current) for bound in policy.bounds]
    return Verdict(all(met for met, _ in found), tuple(line for _, line in found))


def policy_values(policy: TagPolicy) -> dict[str, Any]:
    """The policy in JSON types."""
    return {"bounds": [asdict(bound) for bound in policy.bounds]}


def policy_from(values: Mapping[str, Any]) -> TagPolicy:
    """The inverse of policy_values. Raises ConfigError for what is no policy."""
    try:
        if odd := sorted(values.keys() - {"bounds"}):
            raise ConfigError(f"a policy has no {odd[0]!r}; it holds bounds and nothing else")
        return TagPolicy(bounds=tuple(Bound(**bound) for bound in values["bounds"]))
    except (TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{values!r} is no policy ({error!r}); give bounds, each with a metric and a limit"
        ) from error


def _judged(bound: Bound, figure: Figure | None, current: Mapping[str, Figure] | None) -> tuple[bool, str]:
    name = f"{bound.metric}, {_wanted(bound)}"
    if figure is None:
        return False, f"{name}: not measured; record it"
    if not bound.relative:
        return _within(bound, figure, f"{name}: {_shown(figure)}")
    if current is None:
        return math.isfinite(figure.value), f"{name}: {_shown(figure)}, and no version to compare it with"
    if bound.metric not in current:
        return False, f"{name}: {_shown(figure)}, but not measured for the current version; record it for that"
    other = current[bound.metric]
    change = _difference(figure, other)
    return _within(bound, change, f"{name}: {_shown(figure)} after {_shown(other)}, a change of {_shown(change)}")


def _within(bound: Bound, figure: Figure, line: str) -> tuple[bool, str]:
    """Whether a figure keeps the limits, and the line that says so. Comparisons are written so that NaN keeps none."""
    by_value = bound.judged == "value"
    high, low = (figure.value, figure.value) if by_value else (figure.high, figure.low)
    sides: list[tuple[float | None, float | None, str, Callable[[float, float], bool]]] = [
        (bound.at_most, high, "high", lambda end, limit: end <= limit),
        (bound.at_least, low, "low", lambda end, limit: end >= limit),
    ]
    for limit, end, side, keeps in sides:
        if limit is None:
            continue
        if end is None:
            return False, f"{line}; it has no interval, so ask more independent questions, or judge the value"
        if not keeps(end, limit):
            return False, f"{line}; broken by {'its value' if by_value else f'the {side} end of its interval'}"
    return True, f"{line}; met"


def _difference(new: Figure, old: Figure) -> Figure:
    """New minus old with the square-and-add interval; without one where a figure has none."""
    value = new.value - old.value
    n, clusters = min(new.n, old.n), min(new.clusters, old.clusters)
    if new.low is None or new.high is None or old.low is None or old.high is None:
        return Figure(value, n=n, clusters=clusters)
    # A percentile interval may miss its own value; what sticks out on the wrong side is no uncertainty.
    below = math.hypot(max(0.0, new.value - new.low), max(0.0, old.high - old.value))
    above = math.hypot(max(0.0, new.high - new.value), max(0.0, old.value - old.low))
    return Figure(value, value - below, value + above, n, clusters)


def _wanted(bound: Bound) -> str:
    limits = [("at most", bound.at_most), ("at least", bound.at_least)]
    words = " and ".join(f"{word} {limit:.6g}" for word, limit in limits if limit is not None)
    return f"{words} from the current version" if bound.relative else words


def _shown(figure: Figure) -> str:
    ends = "" if figure.low is None or figure.high is None else f" [{figure.low:.6g}, {figure.high:.6g}]"
    return f"{figure.value:.6g}{ends} (n {figure.n}, {figure.clusters} groups)"
