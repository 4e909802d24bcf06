"""Damaged tables are made again from the journal; of a lost ledger is saved what the manifests tell, and no more."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Table, delete, insert, inspect, select, text, update

from pmemx.core.access import Role
from pmemx.core.errors import AccessDenied, StorageError
from pmemx.store import catalogue, engine, schema
from pmemx.store.answers import Answers
from pmemx.store.bank import LEDGER_FILE, Bank
from pmemx.store.block_bytes import decode, encode
from pmemx.store.evaluations import Evaluations
from pmemx.store.governed import GovernedStore
from pmemx.store.journal import Journal
from pmemx.store.members import Members
from pmemx.store.rebuild import rebuild, salvage
from pmemx.store.snapshots import Snapshots
from pmemx.store.verification import findings
from tests.store.banks import block, fill, put
from tests.store.every_entry import NAMES, fill_bank


def answers(bank: Bank) -> dict[str, Any]:
    """What a bank says to every question."""
    with bank.ledger.reading() as now:
        blocks = {name: catalogue.block_of(now, bank.full(name)) for name in NAMES}
        found: dict[str, Any] = {
            "listing": catalogue.listing(now),
            "usage": {name: catalogue.usage(now, block) for name, block in blocks.items()},
            "children": catalogue.descendants(now, catalogue.resolve(now, "law@1").version.digest),
            "tables": {t.name: {tuple(row) for row in now.connection.execute(select(t))} for t in schema.PROJECTED},
        }
    return found | {
        "names": bank.names(),
        "histories": {name: bank.history(name) for name in NAMES},
        "tags": {name: bank.tags(name) for name in NAMES},
        "scores": Evaluations(bank).of("medicine"),
        "policies": Evaluations(bank).policies(),
        "members": Members(bank).list(),
        "snapshots": Snapshots(bank).list(),
        "answers": Answers(bank).recent(),
        "journal": Journal(bank).entries(limit=1000),
        "head": Journal(bank).head(),
        "bank": bank.ledger.bank_id(),
    }


def empty(connection: Connection, table: Table) -> None:
    connection.execute(delete(table))


def lose_a_row(connection: Connection, table: Table) -> None:
    row = connection.execute(select(table)).first()
    assert row is not None
    connection.execute(delete(table).where(*(table.c[key.name] == row._mapping[key] for key in table.primary_key)))


def edit_a_row(connection: Connection, table: Table) -> None:
    column = list(table.columns)[-1]
    row = connection.execute(select(table)).first()
    assert row is not None
    value = "forged" if isinstance(row._mapping[column], str) else (row._mapping[column] or 0) + 1
    keys = [table.c[key.name] == row._mapping[key] for key in table.primary_key]
    connection.execute(update(table).where(*keys).values({column.name: value}))


@pytest.mark.parametrize("damage", [empty, lose_a_row, edit_a_row])
def test_damage_to_every_table_is_found_and_made_good(
    new_bank: Callable[[], Bank], damage: Callable[[Connection, Table], None]
):
    bank = fill_bank(new_bank())
    before = answers(bank)
    assert list(findings(bank, tensors=decode)) == [] and rebuild(bank) == ()

    def damaged(tables: Iterable[Table]) -> set[str]:
        with engine.repairing(bank.ledger.location) as connection:
            if engine.is_server(bank.ledger.location):
                connection.execute(text("SET LOCAL session_replication_role = replica"))  # past the foreign keys
            for table in tables:
                damage(connection, table)
        return {table.name for table in tables}

    rights = [schema.principals, schema.grants]
    others = damaged([table for table in schema.PROJECTED if table not in rights])
    assert {line.split(":")[0] for line in findings(bank) if line.startswith("table")} == {f"table {t}" for t in others}
    # Without their own rows nobody may ask for findings, but a rebuild asks the journal who may.
    both = others | damaged(rights)
    assert {line.split(":")[0] for line in rebuild(bank)} == both
    assert list(findings(bank, tensors=decode)) == [] and rebuild(bank) == ()
    assert answers(bank) == before


def test_lost_tables_and_lost_indexes_are_made_again(new_bank: Callable[[], Bank]):
    bank = fill_bank(new_bank())
    before = answers(bank)
    with engine.repairing(bank.ledger.location) as connection:
        schema.metadata.drop_all(connection, tables=schema.PROJECTED)
        connection.execute(text("CREATE TABLE tags (nonsense TEXT)"))
    with pytest.raises(StorageError, match=r"rebuild its tables from the journal \(pmemx bank rebuild\)"):
        bank.names()
    told = rebuild(bank)
    assert len(told) == len(schema.PROJECTED)
    assert "tags: was missing or had other columns, has " in " ".join(told)
    with bank.ledger.reading() as now:
        found = inspect(now.connection)
        for table in schema.PROJECTED:
            assert {index.name for index in table.indexes} <= {index["name"] for index in found.get_indexes(table.name)}
    assert answers(bank) == before


def test_a_rebuild_asks_the_journal_who_may_and_not_the_damaged_tables(new_bank: Callable[[], Bank]):
    bank = fill_bank(new_bank())
    ann = replace(bank, principal="ann")
    with engine.repairing(bank.ledger.location) as connection:
        forged = {"principal": "ann", "role": Role.OWNER.value, "scope": "*", "since": 1, "until": schema.NEVER}
        connection.execute(insert(schema.grants), forged)
    with pytest.raises(AccessDenied, match="'ann' may not administer the bank"):
        rebuild(ann)
    assert any(line.startswith("table grants: ") for line in findings(bank))
    with engine.repairing(bank.ledger.location) as connection:
        connection.execute(delete(schema.grants))
    assert rebuild(bank) == ("grants: 0 rows that the journal does not tell of went, 3 came back",)


def test_a_broken_journal_rebuilds_nothing(new_bank: Callable[[], Bank]):
    bank = fill_bank(new_bank())
    with engine.repairing(bank.ledger.location) as connection:
        connection.execute(delete(schema.tags))
        connection.execute(update(schema.journal).where(schema.journal.c.seq == 5).values(name="forged"))
    with pytest.raises(StorageError, match=r"journal: entry 5 was edited.*cannot be made from it"):
        rebuild(bank)
    with engine.repairing(bank.ledger.location) as connection:
        assert connection.execute(select(schema.tags)).all() == []
        assert len(connection.execute(select(schema.blocks)).all()) == len(NAMES)


def test_a_bank_of_the_past_and_one_without_a_ledger_are_not_rebuilt(new_bank: Callable[[], Bank]):
    bank = new_bank()
    with pytest.raises(StorageError, match=r"(there is no ledger|has no journal).*pmemx bank salvage"):
        rebuild(bank)
    assert not (Path(bank.path) / LEDGER_FILE).exists()
    put(GovernedStore(bank.path, bank.database), "law")
    with pytest.raises(StorageError, match="as of entry 1 and refuses changes"):
        rebuild(bank.at(1))


def test_of_a_lost_ledger_every_manifest_is_saved_under_its_old_digest(new_bank: Callable[[], Bank], memory: Path):
    bank = new_bank()
    store = GovernedStore(bank.path, bank.database)
    dates = ("2026-01-02", "2026-01-01", "2026-01-03")
    made = [put(store, "law", float(number), created=date) for number, date in enumerate(dates, start=1)]
    finance = put(store, "finance", 9.0)
    store.rollback("law", 1)
    store.tag("law@2", "stable")
    bank.objects.put(b"no manifest")
    bank.objects.put(b'{"format": 2}')
    with pytest.raises(StorageError, match=r"holds 6 entries; salvage is for a lost one"):
        salvage(bank)
    kept = Path(bank.path).rename(memory / "lost")
    shown = replace(bank, path=kept, database="")
    (kept / LEDGER_FILE).unlink(missing_ok=True)
    for beside in kept.glob(f"{LEDGER_FILE}-*"):
        beside.unlink()
    assert salvage(shown) == ("finance@1", "law@1", "law@2", "law@3")
    saved = GovernedStore(kept)
    # By the date of making, not by the order of the commits, which nobody knows any more; the rollback is lost too.
    assert [found.digest for found in saved.history("law")] == [made[1].digest, made[0].digest, made[2].digest]
    assert [fill(saved, f"law@{number}") for number in (1, 2, 3)] == [2.0, 1.0, 3.0]
    assert saved.find("finance").digest == finance.digest and saved.tags("law") == {}
    assert saved.verify() == ()


def test_a_manifest_whose_weights_are_gone_is_not_salvaged(memory: Path):
    store = GovernedStore(memory / "bank")
    put(store, "law")
    put(store, "finance", 2.0)
    manifest = store.bank.manifest("law")
    store.bank.objects.delete(manifest.weights)
    for file in (memory / "bank").glob(f"{LEDGER_FILE}*"):
        file.unlink()
    assert salvage(store.bank) == ("finance@1",)
    assert block("finance", 2.0).card == store.find("finance").card


def test_a_manifest_whose_name_cannot_be_one_is_salvaged_under_its_digest(memory: Path):
    store = GovernedStore(memory / "bank")
    put(store, "law")
    manifest, weights = encode(block("two\nlines", 2.0))
    for data in (manifest.encode(), weights):
        store.bank.objects.put(data)
    for file in (memory / "bank").glob(f"{LEDGER_FILE}*"):
        file.unlink()
    odd = f"salvaged {manifest.digest[:12]}"
    assert set(salvage(store.bank)) == {"law@1", f"{odd}@1"}
    assert store.find(odd).digest == manifest.digest
    assert fill(store, odd) == 2.0


@pytest.mark.parametrize("damage", ["DROP TABLE bank", "DELETE FROM bank"])
def test_a_lost_id_of_the_bank_is_given_anew_and_told(new_bank: Callable[[], Bank], damage: str):
    bank = fill_bank(new_bank())
    before = answers(bank)
    with engine.repairing(bank.ledger.location) as connection:
        connection.execute(text(damage))
    assert rebuild(bank) == ("bank: was lost; the bank has a new id",)
    assert rebuild(bank) == ()
    after = answers(bank)
    assert len(after["bank"]) == 32 and after["bank"] != before["bank"]
    assert after | {"bank": ""} == before | {"bank": ""}
