"""Whether a bank is sound: the journal's chain, the tables against a replay of the journal, and every stored byte."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, NullPool, Row, Table, create_engine, select
from sqlalchemy.exc import StatementError

from pmemx.core.access import Permission
from pmemx.core.canonical import canonical_json
from pmemx.core.card_json import card_from
from pmemx.core.errors import ConfigError, CorruptBlock
from pmemx.core.event import GENESIS, Event
from pmemx.store import catalogue, schema
from pmemx.store.bank import Bank
from pmemx.store.ledger import NOW, to_event
from pmemx.store.manifest import Manifest
from pmemx.store.projection import project

Tensors = Callable[[Manifest, bytes], object]
"""Makes a block of a manifest and its weights, and raises CorruptBlock where that cannot be."""
# StatementError: of SQLAlchemy, for a value that a column does not take.
_UNREPLAYABLE = (AssertionError, AttributeError, KeyError, TypeError, ValueError, OverflowError, StatementError)


def findings(bank: Bank, *, tensors: Tensors | None = None, head: str = "") -> Iterator[str]:
    """One line per fault; none for a sound bank. Asks ADMINISTER on the bank, since faults name blocks; an owner who is
    refused because their own rows were damaged rebuilds the tables, which asks the journal.

    tensors: how to check that weights are what their manifest declares; without it their digests alone are checked.
    head: a hash of the journal that was noted elsewhere; a journal without it has lost what came up to there.
    Not seen is an edit of the bank's own id, which stands in no entry.
    """
    with bank.ledger.reading() as now:
        now.require(Permission.ADMINISTER)
        events, faults = _chain(now.connection, head)
        yield from faults
        if not faults:
            yield from _tables(now.connection, events)
        rows = schema.versions
        wanted = (rows.c.digest, rows.c.weights, rows.c.card, schema.blocks.c.name)
        query = select(*wanted).join(schema.blocks).order_by(rows.c.seq)
        live = now.connection.execute(query.where(catalogue.living(NOW))).all()
    for digest, weights, card, name in dict.fromkeys(tuple(row) for row in live):
        yield from _objects(bank, digest, weights, card, name, tensors)


def chain(connection: Connection, *, head: str = "") -> tuple[str, ...]:
    """Faults of the journal's chain alone."""
    return tuple(_chain(connection, head)[1])


def _tables(connection: Connection, events: list[Event]) -> tuple[str, ...]:
    try:
        with replayed(events) as expected:
            return tuple(differences(expected, connection))
    except CorruptBlock as error:
        return (f"journal: {error}",)


def _chain(connection: Connection, head: str) -> tuple[list[Event], list[str]]:
    """Every entry up to the first fault, and that fault."""
    events: list[Event] = []
    previous = GENESIS
    for row in connection.execute(select(schema.journal).order_by(schema.journal.c.seq)):
        fault = _entry_fault(row, len(events) + 1, previous)
        if fault:
            return events, [f"journal: {fault}; restore the ledger from a copy of the bank"]
        events.append(to_event(row))
        previous = row.hash
    if head and head != GENESIS and head not in {event.previous for event in events} | {previous}:
        return events, [f"journal: no entry has the hash {head[:12]} that was noted; entries were removed or replaced"]
    return events, []


def _entry_fault(row: Row, expected: int, previous: str) -> str:
    if row.seq != expected:
        return f"entry {expected} is missing, {row.seq} follows {expected - 1}"
    if row.previous != previous:
        return f"entry {row.seq} does not follow the one before it"
    # SQLite keeps any type in any column.
    texts = (row.principal, row.action, row.namespace, row.name, row.detail)
    if not (isinstance(row.at, int) and all(isinstance(text, str) for text in texts)):
        return f"entry {row.seq} was edited: a column has another type"
    try:
        event = to_event(row)
    except (ValueError, RecursionError):
        return f"entry {row.seq} was edited: its detail is no JSON object"
    untouched = event.hash == row.hash and canonical_json(event.detail) == row.detail
    return "" if untouched else f"entry {row.seq} was edited: it does not have its hash"


@contextmanager
def replayed(events: Iterable[Event]) -> Iterator[Connection]:
    """Tables made anew in memory from entries of a journal. Raises CorruptBlock for an entry that no pmemx wrote."""
    with create_engine("sqlite://", poolclass=NullPool).connect() as connection:
        schema.metadata.create_all(connection)
        for event in events:
            try:
                project(connection, event)
            except _UNREPLAYABLE as error:
                raise CorruptBlock(
                    f"entry {event.seq} cannot be replayed ({error!r:.200}); restore the ledger from a copy of the bank"
                ) from error
        yield connection


def differences(expected: Connection, found: Connection) -> Iterator[str]:
    """One line per table whose rows are not those of a replay."""
    for table in schema.PROJECTED:
        told, held = _rows(expected, table), _rows(found, table)
        if told != held:
            odd = sorted(told.symmetric_difference(held), key=repr)[0]
            yield (
                f"table {table.name}: {len(held - told)} rows that the journal does not tell of and "
                f"{len(told - held)} that it tells of and are gone, {_brief(table, odd)} for one; "
                "rebuild the tables from the journal (pmemx bank rebuild)"
            )


def _rows(connection: Connection, table: Table) -> set[tuple[object, ...]]:
    return {tuple(row) for row in connection.execute(select(table))}


def _brief(table: Table, row: tuple[object, ...]) -> str:
    keys = [column.name for column in table.primary_key.columns]
    values = dict(zip(table.columns.keys(), row, strict=True))
    return ", ".join(f"{key}={values[key]!r}" for key in keys)


def _objects(bank: Bank, digest: str, weights: str, card: str, name: str, tensors: Tensors | None) -> Iterator[str]:
    try:
        manifest = Manifest.decode(bank.objects.get(digest))
        if manifest.weights != weights:
            raise CorruptBlock("its manifest names other weights than the ledger")
        if not _tells(card, manifest):
            raise CorruptBlock("its manifest holds another card than the ledger")
        data = bank.objects.get(weights)
        if tensors is not None:
            tensors(manifest, data)
    except CorruptBlock as error:
        yield f"block {name!r}, version {digest[:12]}: {error}"


def _tells(card: str, manifest: Manifest) -> bool:
    try:
        return card_from(json.loads(card)) == manifest.card
    except (ValueError, TypeError, AttributeError, RecursionError, ConfigError):
        return False
