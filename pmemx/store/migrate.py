"""Brings a bank that an earlier pmemx wrote to the format and the schema of this one."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from filelock import FileLock
from sqlalchemy import Connection

from pmemx.core.access import Permission
from pmemx.core.atomic import sync_folder
from pmemx.core.errors import ConfigError, CorruptBlock, Diverged, StorageError
from pmemx.store import catalogue, changes, engine
from pmemx.store.bank import Bank
from pmemx.store.format_one import Record, read_records, records_folder
from pmemx.store.ledger import Transaction
from pmemx.store.manifest import Manifest
from pmemx.store.projection import block_id
from pmemx.store.rebuild import replay
from pmemx.store.references import SHARED, Name
from pmemx.store.shown import shown

SCRIPTS = Path(__file__).parent / "migrations"
"""Migrations of a ledger's tables, read by alembic."""

UPGRADED = "refs.format-1"
"""What the folder of the records of format 1 is called once the ledger holds them."""


def migrate(bank: Bank) -> tuple[str, ...]:
    """One line per step that was taken; none for a bank of today, nor for one that does not exist yet.

    A ledger is upgraded in one transaction, and what is projected from its journal is projected anew. Asks ADMINISTER.
    Raises StorageError for a ledger of a newer pmemx.
    """
    if folder := records_folder(bank.path):
        return upgrade_format_one(bank, folder)
    if not engine.exists(bank.any_ledger.location):
        return ()
    with bank.any_ledger.repairing() as connection:
        found = engine.revision(connection)
        if not found:
            return ()
        steps = _steps(found, shown(bank.any_ledger.location))
        if steps:
            upgrade(connection)
            replay(connection)
        return steps


def upgrade(connection: Connection) -> None:
    """Run every migration that the tables of a connection have not seen, inside its transaction."""
    command.upgrade(_config(connection), "head")


def _config(connection: Connection | None = None) -> Config:
    # No option of a file: alembic would take a "%" in a path for one of its own.
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _steps(found: str, ledger: str) -> tuple[str, ...]:
    """What each migration from a revision on does, oldest first."""
    scripts = ScriptDirectory.from_config(_config())
    known = {script.revision for script in scripts.walk_revisions()}
    if found not in known:
        raise StorageError(
            f"the ledger {ledger} is of schema {found}, and this pmemx knows up to {max(known)}; upgrade pmemx"
        )
    later = scripts.iterate_revisions("head", found)
    return tuple(f"schema {script.revision}: {script.doc}" for script in later)[::-1]


def upgrade_format_one(bank: Bank, folder: Path) -> tuple[str, ...]:
    """Take the records of format 1 up into the ledger, beside the same objects; one line per block.

    The records stay, in a folder of another name. A crash before that is made good by the next call: what the ledger
    holds already is left alone. Raises CorruptBlock and ConfigError, naming the record, for one that cannot be taken
    up, Diverged where the ledger holds another history under its name; then nothing was changed.
    """
    # Whoever writes a bank of format 1 holds this lock.
    try:
        with FileLock(folder.parent / "lock"):
            records = read_records(folder)
            with bank.any_ledger.writing() as now:
                now.require(Permission.ADMINISTER)
                taken = {record.name: _take_up(bank, now, record) for record in records}
            names = (UPGRADED, *(f"{UPGRADED}.{count}" for count in range(2, 1000)))
            folder.rename(next(place for name in names if not (place := folder.with_name(name)).exists()))
            sync_folder(folder.parent)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be upgraded ({error}); let this user write there, or copy the bank"
        ) from error
    return tuple(f"{name}: {number} of its versions taken up" for name, number in taken.items())


def _take_up(bank: Bank, now: Transaction, record: Record) -> int:
    """The number of versions that the ledger did not hold yet."""
    name = Name(SHARED, record.name)
    block = block_id(now.connection, name.namespace, name.name)
    held = [found.version.digest for found in catalogue.history(now, name)] if block is not None else []
    digests = [digest for digest, _ in record.versions]
    if held[: len(digests)] != digests[: len(held)]:
        raise Diverged(
            f"{record.file} and the ledger hold different histories of {record.name!r}: "
            "an older pmemx wrote there after the upgrade; move that file away, or put its blocks under another name"
        )
    try:
        for digest, restores in record.versions[len(held) :]:
            manifest = Manifest.decode(bank.objects.get(digest))
            changes.commit(now, name, manifest, message=_MESSAGE, restores=restores, digest=digest)
        if len(digests) > len(held):
            for tag, number in sorted(record.tags.items()):
                changes.tag(now, catalogue.numbered(now, name, number, Permission.WRITE), tag, reason=_MESSAGE)
    except (ConfigError, CorruptBlock) as error:
        raise type(error)(f"{record.file}: {error}; or move that file away to leave its block behind") from error
    return max(0, len(digests) - len(held))


_MESSAGE = "from a bank of format 1"
