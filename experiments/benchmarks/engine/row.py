"""A measured row, and what was promised of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .timing import Spread, Times

OURS, PEER, BASE = "pmemx", "peft", "base"


@dataclass(frozen=True)
class Row:
    """One operation at one number of experts.

    amounts: by engine, in `unit` (ms or MiB). ratios: "a / b", on the wall; processor_ratios: the same in processor time.
    difference: between the engines' results before any clock ran, None where there is no peer.
    """

    operation: str
    experts: int
    unit: str
    amounts: Mapping[str, Spread]
    ratios: Mapping[str, Spread]
    processor_ratios: Mapping[str, Spread]
    difference: float | None = None


@dataclass(frozen=True)
class Target:
    """A bound on a ratio, or on the amount of an engine, at one number of experts or (None) at every one."""

    operation: str
    experts: int | None
    of: str
    bound: float
    least: bool

    def value(self, row: Row) -> Spread | None:
        """What the row says about it; None where it speaks of something else."""
        if row.operation != self.operation or self.experts not in (None, row.experts):
            return None
        return row.ratios.get(self.of, row.amounts.get(self.of))

    def met(self, value: Spread) -> bool:
        """Whether the median keeps the bound."""
        return value.median >= self.bound if self.least else value.median <= self.bound

    def __str__(self) -> str:
        return f"{self.of} {'≥' if self.least else '≤'} {self.bound:g}"


SPEEDUP, COST = f"{PEER} / {OURS}", f"{OURS} / {BASE}"
TARGETS = (
    Target("mixed forward", None, COST, 1.12, least=False),
    Target("mixed generate", None, SPEEDUP, 2, least=True),
    Target("soft gate", 8, SPEEDUP, 2, least=True),
    Target("soft gate", 32, SPEEDUP, 4, least=True),
    Target("soft gate", 128, SPEEDUP, 10, least=True),
    Target("token top-2", 8, SPEEDUP, 1.7, least=True),
    Target("token top-2", 32, SPEEDUP, 4.5, least=True),
    Target("token top-2", 128, SPEEDUP, 10, least=True),
    Target("soft gate generate", 8, SPEEDUP, 10, least=True),
    Target("gate training", 8, SPEEDUP, 2, least=True),
    Target("gate training", 32, SPEEDUP, 5, least=True),
    Target("gate training, resident", 32, SPEEDUP, 10, least=True),
    Target("sequence routing", 512, f"{OURS} / at 8", 1.05, least=False),
    Target("swap from disk", 8, SPEEDUP, 8, least=True),
    Target("swap from disk", 128, SPEEDUP, 50, least=True),
    Target("swap from disk, growing", 512, f"{OURS} / at 8", 2, least=False),
    Target("swap from memory, growing", None, OURS, 1, least=False),
    Target("open", 128, OURS, 5, least=False),
    Target("import", 128, SPEEDUP, 50, least=True),
    Target("memory per expert", None, f"{OURS} / raw", 1.01, least=False),
)


class Unequal(AssertionError):
    """Two engines that should compute the same do not, so their times may not be compared."""


def checked(operation: str, experts: int, difference: float, tolerance: float) -> float:
    """The difference between the engines' results. Raises Unequal when it is above the tolerance."""
    if not difference <= tolerance:
        raise Unequal(
            f"{operation} at {experts} experts differs from PEFT by {difference:.2g}, allowed are {tolerance:g}"
        )
    return difference


def row_of(operation: str, experts: int, times: Times, difference: float | None = None) -> Row:
    """The row of what the clocks said, with the quotients of pmemx, PEFT and the base."""
    names = tuple(times.wall)
    pairs = [(a, b) for a, b in ((OURS, BASE), (PEER, BASE), (PEER, OURS)) if a in names and b in names]
    return Row(
        operation,
        experts,
        "ms",
        {name: Spread.of([1e3 * second for second in times.wall[name]]) for name in names},
        {f"{a} / {b}": times.ratio(a, b) for a, b in pairs},
        {f"{a} / {b}": times.processor_ratio(a, b) for a, b in pairs},
        difference,
    )


def grown(operation: str, experts: int, first: str, times: Times) -> Row:
    """The row of one size among sizes of pmemx, by name, that took turns."""
    over = f"at {first}"
    names = {OURS: str(experts), over: first} | ({BASE: BASE} if BASE in times.wall else {})
    times = Times(*({name: kind[key] for name, key in names.items()} for kind in (times.wall, times.processor)))
    row = row_of(operation, experts, times)
    return replace(
        row,
        ratios={**row.ratios, f"{OURS} / {over}": times.ratio(OURS, over)},
        processor_ratios={**row.processor_ratios, f"{OURS} / {over}": times.processor_ratio(OURS, over)},
    )
