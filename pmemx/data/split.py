"""Seeded splits and samples that depend on what a row says, never on where it stands."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar

from pmemx.core.errors import DataError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Item = TypeVar("Item")


def check_fractions(fractions: Mapping[str, float], setting: str) -> None:
    """Raise DataError unless the fractions name known splits, leave rows to train and test, and sum to 1."""
    if unknown := sorted(set(fractions) - set(SPLITS)):
        raise DataError(f"{setting} names {', '.join(unknown)}; the splits are {', '.join(SPLITS)}")
    for split in SPLITS:
        share = fractions.get(split, 0.0)
        if share < 0 or (share == 0 and split != "validation"):
            raise DataError(f"{setting}.{split} is {share}, but must be above 0; rows are needed there")
    if abs(sum(fractions.values()) - 1) > 1e-6:
        raise DataError(f"{setting} sums to {sum(fractions.values()):g}, but must sum to 1; change one of the shares")


def split_of(key: str, fractions: Mapping[str, float], seed: int) -> Split:
    """The split of all rows with this key; other rows have no say, so that added rows move none."""
    draw = _uniform(seed, "split", key)
    for split in ("test", "validation"):
        draw -= fractions.get(split, 0.0)
        if draw < 0:
            return split
    return "train"


def sample(items: Sequence[Item], count: int | None, seed: int, key: Callable[[Item], str]) -> tuple[Item, ...]:
    """At most `count` items in their old order, drawn without replacement by the hash of their keys; None keeps all."""
    if count is None or len(items) <= count:
        return tuple(items)
    ranked = sorted(range(len(items)), key=lambda i: (_uniform(seed, "sample", key(items[i])), i))
    return tuple(items[i] for i in sorted(ranked[:count]))


def _uniform(seed: int, purpose: str, key: str) -> float:
    name = f"{seed}\0{purpose}\0{key}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:7], "big") / 2**56
