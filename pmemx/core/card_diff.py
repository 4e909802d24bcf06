"""What differs between two cards, field by field; imports no torch."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from pmemx.core.canonical import canonical_json, plain
from pmemx.core.card import BlockCard


@dataclass(frozen=True)
class Change:
    """A value before and after, of JSON types. What was added has None before, and what was removed None after."""

    before: Any
    after: Any
    kind: Literal["added", "removed", "changed"]

    @property
    def delta(self) -> float | None:
        """By how much a number grew; None unless both sides are finite numbers."""
        for value in (self.before, self.after):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                return None
        return self.after - self.before

    def to_json(self) -> dict[str, Any]:
        """JSON types. NaN and infinity, which JSON lacks, become the strings "nan", "inf" and "-inf"."""
        return {"kind": self.kind, "before": _finite(self.before), "after": _finite(self.after)}


def card_changes(before: BlockCard, after: BlockCard) -> dict[str, Change]:
    """Every field that differs, by its path: "licence", "recipe.lr", "peft_config.rank_pattern.\\"layers.0.up_proj\\"".

    Values differ where their canonical JSON does: 1 and 1.0 do, a tuple and a list of one content do not, nor two NaNs.
    A key that holds a dot is quoted, so that no two fields share a path. The order of keys counts in the PEFT config
    alone, where the first matching pattern wins: a mapping that holds the same keys in another order is one change.
    Raises TypeError when a card holds something that is no JSON type.
    """
    old, new = ({item.name: plain(getattr(card, item.name)) for item in fields(BlockCard)} for card in (before, after))
    reordered = _reordered("peft_config", old["peft_config"], new["peft_config"])
    return dict(_walk("", old, new)) | dict(reordered)


def score_changes(before: BlockCard, after: BlockCard) -> dict[str, Change]:
    """The metrics that differ, by name."""
    changes = {name: _change(name, before.metrics, after.metrics) for name in {**before.metrics, **after.metrics}}
    return {name: change for name, change in changes.items() if change is not None}


def _walk(path: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Change]]:
    for key in dict.fromkeys([*before, *after]):
        here = _joined(path, key)
        sides = [side[key] for side in (before, after) if key in side]
        # An absent mapping counts as an empty one, so that what is in the other is told entry by entry.
        if all(isinstance(side, Mapping) for side in sides) and any(sides):
            yield from _walk(here, before.get(key, {}), after.get(key, {}))
        elif change := _change(key, before, after):
            yield here, change


def _change(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Change | None:
    if key not in before:
        return Change(None, after[key], "added")
    if key not in after:
        return Change(before[key], None, "removed")
    if canonical_json(before[key]) != canonical_json(after[key]):
        return Change(before[key], after[key], "changed")
    return None


def _reordered(path: str, before: Any, after: Any) -> Iterator[tuple[str, Change]]:
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
        return
    shared = [key for key in before if key in after]
    if shared != [key for key in after if key in before]:
        yield path, Change(before, after, "changed")
    for key in shared:
        yield from _reordered(_joined(path, key), before[key], after[key])


def _joined(path: str, key: str) -> str:
    quoted = json.dumps(key, ensure_ascii=False) if not key or "." in key or '"' in key else key
    return f"{path}.{quoted}" if path else quoted


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
