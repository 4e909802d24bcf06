"""What is asked of a bank, and how long that takes on two clocks."""

import gc
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter, process_time

from pmemx.store import catalogue, changes
from pmemx.store.bank import Bank
from pmemx.store.journal import Journal
from pmemx.store.references import Name

from .banks import TEAMS, block, name


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        """Of at least two values."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return Spread(median, low, high)


@dataclass(frozen=True)
class Row:
    """Milliseconds of one operation: of the wall, and of the processor, which does not count waiting for disk and neighbours."""

    operation: str
    blocks: int
    ledger: str
    place: str
    answers: int
    wall: Spread
    processor: Spread
    rounds: int


def questions(bank: Bank, size: int) -> dict[str, Callable[[], int]]:
    """Each returns how many answers it got."""
    middle, versions = size // 2, itertools.count(1)

    def listed(**wanted: object) -> int:
        with bank.ledger.reading() as now:
            return len(catalogue.listing(now, **wanted))  # type: ignore[arg-type]

    def tag() -> int:
        return bank.tag(name(middle), f"tag {next(versions)}").number

    return {
        "list": lambda: listed(),
        "list, a page of 100": lambda: listed(after=Name("shared", name(middle)), limit=100),
        "names": lambda: len(bank.names()),
        "search, domain": lambda: listed(where={"domain": "domain 007"}),
        "search, field of the user's": lambda: listed(where={"extra.team": f"team {size % TEAMS}"}),
        "search, field in the recipe": lambda: listed(where={"recipe.stage.lr": "0.001", "recipe.block": str(middle)}),
        "search, text": lambda: listed(text=name(middle)[:-1]),
        "show": lambda: bank.find(name(middle)).number,
        "log": lambda: len(Journal(bank).entries(name(middle))),
        "tag": tag,
    }


def commits(bank: Bank, size: int) -> dict[str, Callable[[], int]]:
    """A new version of a block: of all of it, and of its manifest in the ledger alone, whose objects are there."""
    versions = itertools.count(1)

    def commit() -> int:
        return bank.commit(*block(size // 2, next(versions))).number

    def in_ledger() -> int:
        manifest, _ = block(size // 3, next(versions))
        with bank.ledger.writing() as now:
            return changes.commit(now, Name("shared", name(size // 3)), manifest).version.number

    return {"commit": commit, "commit, ledger alone": in_ledger}


def timed(parts: Mapping[tuple[str, int], Callable[[], int]], rounds: int, *, ledger: str, place: str) -> list[Row]:
    """Take turns, each round beginning with another part, after one turn that does not count; garbage is collected between."""
    wall: dict[tuple[str, int], list[float]] = {part: [] for part in parts}
    processor: dict[tuple[str, int], list[float]] = {part: [] for part in parts}
    answers = {part: ask() for part, ask in parts.items()}
    order = list(parts)
    gc.collect()
    gc.disable()
    for turn in range(rounds):
        for part in order[turn % len(order) :] + order[: turn % len(order)]:
            begin, used = perf_counter(), process_time()
            parts[part]()
            wall[part].append((perf_counter() - begin) * 1e3)
            processor[part].append((process_time() - used) * 1e3)
        gc.collect()
    gc.enable()
    return [
        Row(*part, ledger, place, answers[part], Spread.of(wall[part]), Spread.of(processor[part]), rounds)
        for part in parts
    ]
