"""Cards as JSON values: fields this pmemx does not know survive a round trip, at the place where they stood."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from types import UnionType
from typing import Any

from pmemx.core.canonical import plain
from pmemx.core.card import BlockCard
from pmemx.core.errors import ConfigError

FIELDS = tuple(item.name for item in fields(BlockCard) if item.name != "extra")
"""Names that a card has in JSON; any other one is kept in `extra`."""
_TUPLES = ("sources", "embedding", "parents")
_MAPPINGS = ("recipe", "metrics", "peft_config")


def card_values(card: BlockCard) -> dict[str, Any]:
    """The card in JSON types, with what is in `extra` beside the other fields. Raises TypeError for other types."""
    values = {name: getattr(card, name) for name in FIELDS} | dict(card.extra)
    found = plain(values)
    assert isinstance(found, dict)
    return found


def card_from(values: Mapping[str, Any]) -> BlockCard:
    """The inverse of card_values. Raises TypeError when a field is missing, ConfigError when one has no legal value."""
    own = {key: value for key, value in values.items() if key in FIELDS}
    for key, value in own.items():
        if not _fits(key, value):
            raise ConfigError(
                f"the field {key!r} of a card is {value!r:.80}, of a type that it never has; mend the card"
            )
    own |= {key: tuple(own[key]) for key in _TUPLES if key in own}
    return BlockCard(**own, extra={key: value for key, value in values.items() if key not in FIELDS})


def _fits(key: str, value: Any) -> bool:
    if key in _MAPPINGS:
        return isinstance(value, Mapping) and (key != "metrics" or _all(value.values(), int | float))
    if key in _TUPLES:
        return isinstance(value, list | tuple) and _all(value, int | float if key == "embedding" else str)
    if key in ("ttl", "half_life"):
        return value is None or isinstance(value, int | float)
    return isinstance(value, int if key == "priority" else str)


def _all(values: Iterable[object], kind: type | UnionType) -> bool:
    return all(isinstance(value, kind) for value in values)
