"""Times that survive a shared machine: engines take turns in one process, and only the quotients of a round are kept."""

import gc
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter, process_time

Part = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """Median and extremes of one number a round."""

    median: float
    low: float
    high: float
    rounds: int

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        """Of what the rounds gave."""
        return Spread(statistics.median(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        return f"{digits(self.median)} [{digits(self.low)}, {digits(self.high)}]"


@dataclass(frozen=True)
class Times:
    """Seconds of every engine by round: on the wall, and of the processor, which do not count waiting for other programs."""

    wall: Mapping[str, Sequence[float]]
    processor: Mapping[str, Sequence[float]]

    def ratio(self, above: str, below: str) -> Spread:
        """Quotient of two engines on the wall, round by round."""
        return _quotient(self.wall[above], self.wall[below])

    def processor_ratio(self, above: str, below: str) -> Spread:
        """Quotient of two engines in processor time, round by round."""
        return _quotient(self.processor[above], self.processor[below])


def interleaved(
    parts: Mapping[str, Part],
    rounds: int,
    *,
    wait: Callable[[], None] = lambda: None,
    calls: Mapping[str, int] | None = None,
) -> Times:
    """Let the engines take turns; each round begins with another one. calls: how often a short one is called in its turn.

    Every engine runs once before the first round. Garbage is collected between rounds only.
    """
    calls = calls or {}
    wall: dict[str, list[float]] = {name: [] for name in parts}
    processor: dict[str, list[float]] = {name: [] for name in parts}
    for part in parts.values():
        part()
    names = list(parts)
    with _without_collector():
        for number in range(rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                part, times = parts[name], calls.get(name, 1)
                wait()
                start, worked = perf_counter(), process_time()
                for _ in range(times):
                    part()
                wait()
                processor[name].append((process_time() - worked) / times)
                wall[name].append((perf_counter() - start) / times)
            gc.collect()
    return Times(wall, processor)


def digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _quotient(above: Sequence[float], below: Sequence[float]) -> Spread:
    return Spread.of([first / second for first, second in zip(above, below, strict=True)])


@contextmanager
def _without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
