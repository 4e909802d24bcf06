"""Seeded splits and samples that depend on what a row says, never on where it stands."""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
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
    """The split of all rows with this key by its hash alone: other rows have no say."""
    draw = _uniform(seed, "split", key)
    for split in ("test", "validation"):
        draw -= fractions.get(split, 0.0)
        if draw < 0:
            return split
    return "train"


def split_groups(
    fractions: Mapping[str, Mapping[str, float]], seed: int, *, filled: Collection[Split] = ()
) -> dict[str, Split]:
    """The split of every key: that of its hash, but for the few keys that fill a split that would be empty.

    An empty split takes the key whose draw lies nearest to its interval, of a split that keeps another key. Added rows
    move no old key to another split, but those that filled an empty one.

    Args:
        fractions: by key, the share of each split; a share of 0 leaves the split empty.
        filled: splits that have rows already.

    Raises DataError where there are fewer keys than splits to fill.
    """
    splits: dict[str, Split] = {key: split_of(key, shares, seed) for key, shares in fractions.items()}
    wanted: list[Split] = [
        split for split in SPLITS if any(shares.get(split, 0.0) > 0 for shares in fractions.values())
    ]
    for split in wanted:
        held = Counter(splits.values())
        if held[split] or split in filled:
            continue
        free = [
            key
            for key, old in splits.items()
            if fractions[key].get(split, 0.0) > 0 and (held[old] > 1 or old in filled)
        ]
        if not free:
            needing = ", ".join(split for split in wanted if split not in filled)
            raise DataError(
                f"{len(splits)} {'group is' if len(splits) == 1 else 'groups are'} too few for {needing}; add rows of "
                f"other groups (a group is a document, else a prompt; of plain text, a text), set data.split_by=prompt for "
                f"questions, put texts into one, give a file for each split, or set the share of validation to 0"
            )
        _, nearest = min((_distance(key, fractions[key], seed, split), key) for key in free)
        splits[nearest] = split
    return splits


def sample(items: Sequence[Item], count: int | None, seed: int, key: Callable[[Item], str]) -> tuple[Item, ...]:
    """At most `count` items in their old order, drawn without replacement by the hash of their keys; None keeps all."""
    if count is None or len(items) <= count:
        return tuple(items)
    ranked = sorted(range(len(items)), key=lambda i: (_uniform(seed, "sample", key(items[i])), i))
    return tuple(items[i] for i in sorted(ranked[:count]))


def _distance(key: str, fractions: Mapping[str, float], seed: int, split: Split) -> float:
    """How far a key's draw lies from the part of [0, 1) that belongs to the split."""
    draw = _uniform(seed, "split", key)
    test, validation = fractions.get("test", 0.0), fractions.get("validation", 0.0)
    bounds: dict[Split, tuple[float, float]] = {
        "test": (0.0, test),
        "validation": (test, test + validation),
        "train": (test + validation, 1.0),
    }
    start, end = bounds[split]
    return max(start - draw, draw - end, 0.0)


def _uniform(seed: int, purpose: str, key: str) -> float:
    name = f"{seed}\0{purpose}\0{key}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:7], "big") / 2**56
