"""Conditions of a search: a column of the list of blocks by the value that it shows, or a field of the card."""

import csv
import difflib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from sqlalchemy import JSON, ColumnElement, Table, Text, and_, cast, func, or_, select

from pmemx.core.canonical import canonical_json
from pmemx.core.card_json import FIELDS
from pmemx.core.clock import to_microseconds
from pmemx.core.errors import ConfigError
from pmemx.core.lifecycle import State
from pmemx.store import schema
from pmemx.store.ledger import Transaction
from pmemx.store.projection import FACETS
from pmemx.store.references import LATEST, split_namespace

Condition = ColumnElement[bool]
_V, _B, _T, _S, _U = schema.versions, schema.blocks, schema.tags, schema.states, schema.uses
_SECOND = 1_000_000


def held(now: Transaction, rows: Table) -> Condition:
    """Whether a row with `since` and `until` held at the moment of a look."""
    return and_(rows.c.since <= now.moment, rows.c.until > now.moment)


def condition(now: Transaction, path: str, value: str) -> Condition:
    """That a block and its latest version have a value, in a query over blocks, versions and states.

    path: a column of the list under the name that it has there or in JSON, or a field of the card ("licence",
    "recipe.steps", "extra.team"). value: as the list shows it; of a field that has no column, its text or its JSON.
    Raises ConfigError for a path that nothing has, and for a value that the column cannot have.
    """
    if path in _COLUMNS:
        return _COLUMNS[path](now, value)
    if path in FACETS:
        found = _V.c[path] == value
        # Said twice, so that a database without statistics begins with these few and not with every latest version.
        return and_(found, _B.c.id.in_(select(_V.c.block).where(found))) if path == "domain" else found
    if path.split(".")[0] not in FIELDS and not path.startswith("extra."):
        near = difflib.get_close_matches(path, [*FIELDS, *_COLUMNS], n=1)
        hint = (
            f"did you mean {near[0]!r}?"
            if near
            else "ask for a column of the list, a field of the card, or extra.<your field>"
        )
        raise ConfigError(f"no card has a field {path!r}; {hint}")
    return _in_card(now, path, value)


def shown_tag(tag: str, number: int | None = None) -> str:
    """A tag as a list shows it: with the number of its version where that is another one; quoted where it holds a comma."""
    text = tag if number is None else f"{tag}@{number}"
    return '"' + text.replace('"', '""') + '"' if {",", '"'} & set(text) else text


def _named(now: Transaction, value: str) -> Condition:
    name = split_namespace(value, "")
    here = _B.c.name == name.name
    return and_(here, _B.c.namespace == name.namespace) if name.namespace else here


def _of_base(now: Transaction, value: str) -> Condition:
    """The name of a base, its fingerprint, or how that begins."""
    if not value:
        return and_(_V.c.base_name == "", _V.c.base == "")
    return or_(_V.c.base_name == value, func.substr(_V.c.base, 1, len(value)) == value)


def _with_digest(now: Transaction, value: str) -> Condition:
    return func.substr(_V.c.digest, 1, len(value)) == value


def _in_state(now: Transaction, value: str) -> Condition:
    if value not in set(State):
        raise ConfigError(f"no block is in the state {value!r}; the states are {', '.join(State)}")
    return _S.c.state == value


def _tagged(now: Transaction, value: str) -> Condition:
    """A tag on any version; "stable@1" on that one; several behind commas, all of them; nothing: no tag."""
    if not value:
        others = or_(_T.c.tag < LATEST, _T.c.tag > LATEST)
        return _B.c.id.not_in(select(_T.c.block).where(others, held(now, _T)))
    try:
        (parts,) = csv.reader([value], skipinitialspace=True)
    except (csv.Error, ValueError) as error:
        raise ConfigError(f"tags stand on one line with commas between them, got {value!r} ({error})") from error
    # A tag that holds a comma itself need not be quoted where it is the only one.
    return or_(_has_tag(now, value), and_(*(_has_tag(now, part) for part in parts)))


def _has_tag(now: Transaction, value: str) -> Condition:
    tag, at, number = value.rpartition("@")
    wanted = [_T.c.tag == (tag if at else value), held(now, _T)]
    if at:
        wanted.append(_T.c.number == _whole("the version behind a tag", number))
    return _B.c.id.in_(select(_T.c.block).where(*wanted))


def _count(name: str, column: Any) -> Callable[[Transaction, str], Condition]:
    return lambda now, value: column == _whole(name, value)


def _whole(name: str, value: str) -> int:
    if not (value.isdecimal() and len(value) < 19):
        raise ConfigError(f"{name} is a whole number, got {value!r}; write one as the list shows it")
    return int(value)


def _time(name: str, column: Any, never: Condition) -> Callable[[Transaction, str], Condition]:
    """A time to the second, as the list shows it; nothing stands for never."""

    def at(now: Transaction, value: str) -> Condition:
        if not value:
            return never
        try:
            moment = datetime.fromisoformat(value)
        except ValueError as error:
            raise ConfigError(f"{name} is a time such as 2026-01-31T12:00:00+00:00, got {value!r}") from error
        start = to_microseconds(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
        return and_(column >= start, column < start + _SECOND)

    return at


def _of_uses(function: Any) -> Any:
    """A number over the uses of all versions of a block, 0 where there are none."""
    return select(func.coalesce(function, 0)).where(_U.c.block == _B.c.id).scalar_subquery()


_LAST_USED = _of_uses(func.max(_U.c.last))
_last_used = _time("last used", _LAST_USED, _LAST_USED == 0)
_COLUMNS: Mapping[str, Callable[[Transaction, str], Condition]] = MappingProxyType(
    {
        "namespace": lambda now, value: _B.c.namespace == value,
        "name": _named,
        "version": _count("version", _V.c.number),
        "number": _count("number", _V.c.number),
        "base": _of_base,
        "rank": _count("rank", _V.c.rank),
        "sites": _count("sites", _V.c.sites),
        "bytes": _count("bytes", _V.c.size),
        "size": _count("size", _V.c.size),
        "state": _in_state,
        "uses": _count("uses", _of_uses(func.sum(_U.c.count))),
        "last used": _last_used,
        "last_used": _last_used,
        "expires": _time("expires", _V.c.expires, _V.c.expires >= schema.NEVER),
        "tag": _tagged,
        "tags": _tagged,
        "digest": _with_digest,
        "uid": lambda now, value: _B.c.uid == value,
    }
)


def _in_card(now: Transaction, path: str, value: str) -> Condition:
    """Whether a field of the card is that text, or has it as its JSON. A field that a card lacks is null."""
    keys = path.removeprefix("extra.").split(".")
    words = {canonical_json(value), value}
    if any('"' in key for key in keys):
        raise ConfigError(
            f"a search cannot ask for {path!r}, a field with a double quote in its name; rename the field"
        )
    if now.connection.dialect.name == "postgresql":
        found: ColumnElement[Any] = cast(_V.c.card, JSON)
        for key in keys:
            found = found.op("->")(cast(key, Text))
        return func.coalesce(cast(found, Text), "null").in_(words)
    # Asked for twice, because SQLite gives two values as the JSON that they are in the card, and one as it likes.
    place = "$" + "".join(f'."{key}"' for key in keys)
    return func.json_extract(_V.c.card, place, place).in_([f"[{word},{word}]" for word in words])
