"""Makes the tables of a ledger again from its journal, and what is left of a bank whose ledger is lost from its manifests."""

from collections.abc import Iterator

from sqlalchemy import Connection, Table, inspect, select

from pmemx.core.access import Permission
from pmemx.core.errors import ConfigError, CorruptBlock, StorageError
from pmemx.store import changes, engine, schema
from pmemx.store.bank import Bank
from pmemx.store.ledger import give_id, to_event
from pmemx.store.manifest import Manifest
from pmemx.store.projection import project
from pmemx.store.references import Name, check_name
from pmemx.store.shown import shown
from pmemx.store.verification import chain


def rebuild(bank: Bank) -> tuple[str, ...]:
    """Make every table again that is projected from the journal; one line per table that was not what it should be.

    All of it is one transaction. The bank's own id stands in no entry: it stays, and where it is lost the bank gets a new
    one. Asks ADMINISTER, of the tables as the journal tells them. Raises StorageError, and changes nothing, where there is
    no journal or its chain is broken.
    """
    location = bank.ledger.location
    if not engine.exists(location):
        raise StorageError(f"there is no ledger {shown(location)} to rebuild; {_SALVAGE}")
    with bank.ledger.repairing() as connection:
        if not inspect(connection).has_table(schema.journal.name):
            raise StorageError(f"the ledger {shown(location)} has no journal; {_SALVAGE}")
        before = {table: _rows(connection, table) for table in schema.PROJECTED}
        engine.prepare(connection, location)
        replay(connection)
        schema.bank.create(connection, checkfirst=True)
        known = connection.execute(select(schema.bank.c.id)).first()
        give_id(connection, bank.clock)
        renamed = () if known else (f"{schema.bank.name}: was lost; the bank has a new id",)
        return (*renamed, *_differences(connection, before))


def replay(connection: Connection) -> None:
    """Drop what is projected and project the journal anew. Raises StorageError where the journal's chain is broken."""
    if faults := chain(connection):
        raise StorageError(f"{faults[0]}; its tables cannot be made from it")
    schema.metadata.drop_all(connection, tables=schema.PROJECTED)
    schema.metadata.create_all(connection, tables=schema.PROJECTED)
    for row in connection.execute(select(schema.journal).order_by(schema.journal.c.seq)).all():
        project(connection, to_event(row))


def salvage(bank: Bank) -> tuple[str, ...]:
    """Commit anew what the manifests beside a lost ledger tell of; the references of what was committed.

    Every whole manifest whose weights are whole becomes a version under the name on its card, in the bank's own
    namespace (one that cannot be a name becomes "salvaged <digits of its digest>"), ordered by the card's date of making, then by when the manifest was written. Digests, cards and weights
    are as before. Lost are tags, states, uses, scores, principals and grants, the true order and the times of commits,
    other names than the card's, which versions were rollbacks, and that a block had expired. Raises StorageError for a
    bank whose journal holds anything.
    """
    with bank.transaction() as now:
        now.require(Permission.ADMINISTER)
        if now.head[0]:
            raise StorageError(
                f"the ledger {shown(bank.ledger.location)} holds {now.head[0]} entries; "
                "salvage is for a lost one: where its tables are damaged, rebuild them (pmemx bank rebuild)"
            )
        found = sorted(_manifests(bank), key=lambda item: item[:3])
        made = [
            changes.commit(now, _name(bank, manifest, digest), manifest, message=_MESSAGE, digest=digest)
            for _, _, digest, manifest in found
        ]
        return tuple(bank.reference(one.version) for one in made)


_SALVAGE = "restore it from a copy of the bank, or take up what its manifests tell (pmemx bank salvage)"
_MESSAGE = "salvaged from its manifest: the order of versions is that of their making"


def _manifests(bank: Bank) -> Iterator[tuple[str, float, str, Manifest]]:
    """Date of making, time of writing, digest and content of each whole manifest with whole weights."""
    for item in bank.objects.listing():
        try:
            data = bank.objects.get(item.sha256)
            manifest = Manifest.decode(data)
            bank.objects.get(manifest.weights)
        except CorruptBlock:  # weights, or damaged
            continue
        yield manifest.card.created, item.modified.timestamp(), item.sha256, manifest


def _name(bank: Bank, manifest: Manifest, digest: str) -> Name:
    try:
        check_name(manifest.card.name)
    except ConfigError:
        return Name(bank.namespace, f"salvaged {digest[:12]}")
    return Name(bank.namespace, manifest.card.name)


def _rows(connection: Connection, table: Table) -> set[tuple[object, ...]] | None:
    """None where the table is missing or has other columns."""
    found = inspect(connection)
    if not found.has_table(table.name):
        return None
    if [column["name"] for column in found.get_columns(table.name)] != table.columns.keys():
        return None
    return {tuple(row) for row in connection.execute(select(table))}


def _differences(connection: Connection, before: dict[Table, set[tuple[object, ...]] | None]) -> Iterator[str]:
    for table, old in before.items():
        new = _rows(connection, table)
        assert new is not None
        if old is None:
            yield f"{table.name}: was missing or had other columns, has {len(new)} rows"
        elif old != new:
            yield f"{table.name}: {len(old - new)} rows that the journal does not tell of went, {len(new - old)} came back"
