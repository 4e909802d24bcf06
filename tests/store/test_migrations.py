"""Ledgers and banks of every earlier pmemx are brought to today's, or refused with what to do; nothing is lost half way."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, create_engine, inspect, select, update

from pmemx.core.access import Role
from pmemx.core.canonical import digest
from pmemx.core.errors import AccessDenied, ConfigError, CorruptBlock, Diverged, StorageError
from pmemx.core.event import Action
from pmemx.store import engine, migrate, schema
from pmemx.store.bank import LEDGER_FILE, Bank
from pmemx.store.block_bytes import decode
from pmemx.store.governed import GovernedStore
from pmemx.store.journal import Journal
from pmemx.store.life import Life
from pmemx.store.manifest import Manifest
from pmemx.store.members import Members
from pmemx.store.verification import findings
from tests.store.banks import put
from tests.store.every_entry import NAMES

GOLDEN = Path(__file__).parent / "golden"
LEDGERS = sorted(GOLDEN.glob("ledger_*.sql"))
SECOND = '''"""A table of notes, and no table of tags."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table("notes", sa.Column("text", sa.Text()))
    op.drop_table("tags")
'''


# ------------------------------------------------------------------------------------------------- the tables of a ledger


def told(connection: Connection) -> dict[str, Any]:
    """All that a database tells of its tables."""
    found = inspect(connection)
    return {
        table: {
            "columns": [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in found.get_columns(table)],
            "key": found.get_pk_constraint(table)["constrained_columns"],
            "foreign": sorted(
                (key["constrained_columns"], key["referred_table"]) for key in found.get_foreign_keys(table)
            ),
            "indexes": sorted((i["name"], i["column_names"], i["unique"]) for i in found.get_indexes(table)),
            "unique": sorted(key["column_names"] for key in found.get_unique_constraints(table)),
            "options": found.get_table_options(table),
        }
        for table in sorted(found.get_table_names())
        if table != "alembic_version"
    }


def differences(connection: Connection, metadata: MetaData) -> list[Any]:
    return compare_metadata(MigrationContext.configure(connection), metadata)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_migrations_make_the_tables_that_the_code_makes(kind: str, request: pytest.FixtureRequest):
    url = "sqlite://" if kind == "sqlite" else request.getfixturevalue("database")
    migrated, created = MetaData(), MetaData()
    with create_engine(url).connect() as connection, connection.begin():
        migrate.upgrade(connection)
        by_migrations = told(connection)
        migrated.reflect(connection)
        assert differences(connection, schema.metadata) == []
        migrated.drop_all(connection)
        engine.create_tables(connection)
        by_code = told(connection)
        created.reflect(connection)
        assert engine.revision(connection) == schema.REVISION
        migrated.remove(migrated.tables["alembic_version"])
        assert differences(connection, migrated) == []
    assert by_migrations == by_code
    assert set(by_code) == set(schema.metadata.tables)


def test_migrations_end_at_the_revision_of_the_code_and_each_left_a_ledger():
    scripts = ScriptDirectory(str(migrate.SCRIPTS))
    assert scripts.get_heads() == [schema.REVISION]
    revisions = {script.revision for script in scripts.walk_revisions()}
    assert {file.stem.removeprefix("ledger_") for file in LEDGERS} == revisions


@pytest.fixture(params=LEDGERS, ids=lambda file: file.stem)
def past(request: pytest.FixtureRequest, memory: Path) -> Bank:
    """A bank with the ledger that a pmemx of the past wrote."""
    (memory / "bank").mkdir()
    with sqlite3.connect(memory / "bank" / LEDGER_FILE) as ledger:
        ledger.executescript(request.param.read_text(encoding="utf-8"))
    return Bank(memory / "bank", principal="root")


def ledger_findings(bank: Bank) -> list[str]:
    """Findings in the ledger; a golden one has no objects beside it."""
    return [line for line in findings(bank) if not line.startswith("block")]


def test_every_ledger_of_the_past_is_upgraded_and_is_sound(past: Bank):
    migrate.migrate(past)
    assert ledger_findings(past) == []
    assert migrate.migrate(past) == ()
    with past.ledger.reading() as now:
        rows = now.connection.execute(select(schema.journal.c.action)).scalars()
        assert set(Action) <= set(rows)
        assert set(now.connection.execute(select(schema.blocks.c.name)).scalars()) == set(NAMES)
    assert [found.number for found in past.history("law")] == [1, 2, 3, 4][: len(past.history("law"))]
    assert Life(past).state("frozen") == "frozen" and Life(past).state("gone") == "expired"
    with past.ledger.writing() as now:
        now.append(Action.READ, None, {})
    assert ledger_findings(past) == []


@pytest.fixture
def one_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes this pmemx one that has one more migration, of that text."""

    def add(text: str) -> None:
        folder = tmp_path / "100 % migrations"
        shutil.copytree(migrate.SCRIPTS, folder)
        (folder / "versions" / "0002_notes.py").write_text(text)
        monkeypatch.setattr(migrate, "SCRIPTS", folder)
        monkeypatch.setattr(schema, "REVISION", "0002")

    return add


def test_an_older_ledger_is_refused_and_then_upgraded_with_its_tables_made_anew(
    new_bank: Callable[[], Bank], one_more: Callable[[str], None]
):
    bank = replace(new_bank(), principal="root")
    store = GovernedStore(bank.path, bank.database, principal="root")
    put(store, "law", 1.0)
    store.tag("law", "stable")
    head = Journal(bank).head()
    one_more(SECOND)
    for use in (bank.names, lambda: bank.tag("law", "prod"), lambda: put(store, "law", 2.0)):
        with pytest.raises(StorageError, match=r"is of schema 0001, this pmemx reads 0002; run `pmemx bank migrate`"):
            use()
    assert migrate.migrate(bank) == ("schema 0002: A table of notes, and no table of tags.",)
    assert migrate.migrate(bank) == ()
    assert bank.tags("law") == {"stable": 1} and list(findings(bank, tensors=decode)) == []
    assert Journal(bank).head() == head
    with bank.ledger.reading() as now:
        assert inspect(now.connection).has_table("notes")


def test_a_migration_that_fails_changes_nothing(new_bank: Callable[[], Bank], one_more: Callable[[str], None]):
    bank = replace(new_bank(), principal="root")
    put(GovernedStore(bank.path, bank.database, principal="root"), "law")
    one_more(SECOND + "    raise RuntimeError('the power went')\n")
    with pytest.raises(RuntimeError, match="the power went"):
        migrate.migrate(bank)
    with engine.repairing(bank.any_ledger.location) as connection:
        assert engine.revision(connection) == "0001" and not inspect(connection).has_table("notes")
        assert len(connection.execute(select(schema.tags)).all()) == 1


def test_whoever_may_not_administer_a_bank_does_not_migrate_it(
    new_bank: Callable[[], Bank], one_more: Callable[[str], None]
):
    bank = replace(new_bank(), principal="root")
    put(GovernedStore(bank.path, bank.database, principal="root"), "law")
    Members(bank).enrol("root", role=Role.OWNER)
    one_more(SECOND)
    with pytest.raises(AccessDenied):
        migrate.migrate(replace(bank, principal="eve"))
    with engine.repairing(bank.any_ledger.location) as connection:
        assert engine.revision(connection) == "0001" and not inspect(connection).has_table("notes")
    assert migrate.migrate(bank) != ()


def test_a_newer_ledger_is_refused(new_bank: Callable[[], Bank]):
    bank = new_bank()
    put(GovernedStore(bank.path, bank.database), "law")
    with engine.repairing(bank.ledger.location) as connection:
        connection.execute(update(schema.alembic_version).values(version_num="9999"))
    with pytest.raises(StorageError, match="is of schema 9999, and this pmemx knows up to 0001; upgrade pmemx"):
        migrate.migrate(bank)
    with pytest.raises(StorageError, match="upgrade pmemx"):
        bank.names()


def test_a_bank_that_does_not_exist_needs_no_migration_and_is_not_made(new_bank: Callable[[], Bank]):
    bank = new_bank()
    assert migrate.migrate(bank) == ()
    assert not Path(bank.path).exists()
    with bank.ledger.reading() as now:
        assert engine.revision(now.connection) == schema.REVISION  # of the empty one that stands for it


# ------------------------------------------------------------------------------------------------------ banks of format 1


@pytest.fixture
def old(memory: Path) -> Path:
    """A bank as the first pmemx wrote it: "law" with three versions, the last a rollback, and two other blocks."""
    return Path(shutil.copytree(GOLDEN / "format_one", memory / "bank"))


def records(place: Path) -> dict[str, Any]:
    """The records of a folder by name."""
    found = [json.loads(file.read_bytes())["record"] for file in place.glob("*.json")]
    return {record["name"]: record for record in found}


def write_record(file: Path, record: dict[str, Any]) -> None:
    file.write_text(json.dumps({"record": record, "sha256": digest(record)}), encoding="utf-8")


def files(place: Path) -> dict[str, bytes]:
    found = {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if not name.startswith((LEDGER_FILE, "lock"))}


def test_a_bank_of_format_1_is_refused_on_every_path_until_it_is_upgraded(old: Path):
    before = files(old)
    bank, store = Bank(old), GovernedStore(old)
    uses = (
        bank.names, lambda: bank.find("law"),
        lambda: bank.tag("law", "x"), lambda: bank.history("law"), lambda: bank.rollback("law", 1), store.verify,
        lambda: store.get("law"), lambda: put(store, "new"), lambda: Members(bank).enrol("root"),
        lambda: Bank(old, f"sqlite:///{old}/other.db").names(), lambda: Bank(str(old)).names(),
    )  # fmt: skip
    for use in uses:
        with pytest.raises(StorageError, match=r"is a bank of format 1, .* run `pmemx bank migrate` on it"):
            use()
    assert files(old) == before and not (old / LEDGER_FILE).exists()


def test_an_upgraded_bank_has_every_version_tag_and_digest_it_had(old: Path):
    before, blobs = records(old / "refs"), files(old / "blobs")
    told = migrate.migrate(Bank(old))
    assert told == (
        "finance: 1 of its versions taken up",
        "law: 3 of its versions taken up",
        "law and finance ⚖: 1 of its versions taken up",
    )
    store = GovernedStore(old)
    assert set(store.names()) == set(before)
    for name, record in before.items():
        versions = [{"digest": found.digest, "restores": found.restores} for found in store.history(name)]
        assert versions == record["versions"] and store.tags(name) == record["tags"]
    assert files(old / "blobs") == blobs
    assert records(old / migrate.UPGRADED) == before and not (old / "refs").exists()
    assert store.verify() == ()
    assert store.get("law").factors["model.layers.0.mlp.up_proj"].A[0, 0].item() == 1.0
    assert store.find("law@2").card.extra == {"team": "legal", "naïve": "☃"}
    # What an old card kept aside under a word that is a field today stays aside.
    assert store.find("finance").card.extra == {"extra_of_format_1": {"priority": "a word of the user's own"}}
    assert migrate.migrate(Bank(old)) == ()


def test_an_upgraded_bank_goes_on_under_the_old_digests(old: Path):
    migrate.migrate(Bank(old))
    store = GovernedStore(old)
    second = store.history("law")[1]
    back = store.rollback("law", 2)
    assert (back.number, back.digest, back.restores) == (4, second.digest, 2)
    assert Manifest.decode(store.bank.objects.get(second.digest)).digest != second.digest
    store.tag("law", "stable")
    put(store, "law", 5.0)
    assert store.verify() == ()


def test_a_bank_of_format_1_is_upgraded_into_a_server(old: Path, database: str):
    bank = Bank(old, database)
    with pytest.raises(StorageError, match="format 1"):
        bank.names()
    assert len(migrate.migrate(bank)) == 3
    assert bank.names() == ("finance", "law", "law and finance ⚖") and list(findings(bank, tensors=decode)) == []
    assert not (old / LEDGER_FILE).exists()


def test_a_crash_before_the_ledger_was_written_leaves_the_old_bank(old: Path, monkeypatch: pytest.MonkeyPatch):
    before = files(old)
    taken: list[str] = []

    def crash(bank: Bank, now: Any, record: Any) -> int:
        if len(taken) == 2:
            raise RuntimeError("crash")
        taken.append(record.name)
        return take_up(bank, now, record)

    take_up = migrate._take_up
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "_take_up", crash)
        with pytest.raises(RuntimeError):
            migrate.migrate(Bank(old))
    assert files(old) == before
    assert len(migrate.migrate(Bank(old))) == 3 and GovernedStore(old).verify() == ()


def test_a_crash_after_the_ledger_was_written_is_made_good_by_the_next_call(old: Path, monkeypatch: pytest.MonkeyPatch):
    def crash(path: Path, target: Path) -> None:
        raise OSError("crash")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash)
        with pytest.raises(StorageError, match="cannot be upgraded"):
            migrate.migrate(Bank(old))
    with pytest.raises(StorageError, match="format 1"):
        Bank(old).names()
    assert migrate.migrate(Bank(old)) == (
        "finance: 0 of its versions taken up",
        "law: 0 of its versions taken up",
        "law and finance ⚖: 0 of its versions taken up",
    )
    assert len(Bank(old).history("law")) == 3 and GovernedStore(old).verify() == ()


def test_what_an_old_pmemx_wrote_after_the_upgrade_is_taken_up_or_refused_and_never_lost(old: Path):
    migrate.migrate(Bank(old))
    shutil.copytree(old / migrate.UPGRADED, old / "refs")
    (file,) = (f for f in (old / "refs").glob("*.json") if json.loads(f.read_bytes())["record"]["name"] == "finance")
    record = records(old / "refs")["finance"]
    law = records(old / "refs")["law"]["versions"]
    write_record(file, record | {"versions": [*record["versions"], law[0]]})
    assert "finance: 1 of its versions taken up" in migrate.migrate(Bank(old))
    assert [found.digest for found in Bank(old).history("finance")] == [
        record["versions"][0]["digest"],
        law[0]["digest"],
    ]
    assert {path.name for path in old.iterdir()} >= {migrate.UPGRADED, migrate.UPGRADED + ".2"}
    shutil.copytree(old / migrate.UPGRADED, old / "refs")
    write_record(file, record | {"versions": [law[1]]})
    with pytest.raises(Diverged, match="different histories of 'finance'"):
        migrate.migrate(Bank(old))
    assert file.exists()


def test_a_record_that_cannot_be_taken_up_is_named_and_nothing_is_changed(old: Path):
    file = old / "refs" / "8f1f74adf65864c86d3d471ea8ca9e32.json"
    whole = file.read_bytes()
    content = json.loads(whole)["record"]
    for damaged in (whole[:-3], whole.replace(b'"stable": 1', b'"stable": 2'), b"[]", b"\xff"):
        file.write_bytes(damaged)
        with pytest.raises(CorruptBlock, match=f"{file.name}.* move it away to leave its block behind"):
            migrate.migrate(Bank(old))
    write_record(file, content | {"tags": {"stable": 9}})
    with pytest.raises(CorruptBlock, match="a number in it is of no version"):
        migrate.migrate(Bank(old))
    write_record(file, content | {"tags": {"a/b": 1}})
    with pytest.raises(ConfigError, match=f"{file.name}: a tag is a word .*'a/b'"):
        migrate.migrate(Bank(old))
    write_record(file, content | {"versions": [{"digest": "0" * 64, "restores": None}], "tags": {}})
    with pytest.raises(CorruptBlock, match=f"{file.name}: .* is missing"):
        migrate.migrate(Bank(old))
    assert Bank(old).any_ledger.bank_id() == ""
    file.unlink()
    assert len(migrate.migrate(Bank(old))) == 2
