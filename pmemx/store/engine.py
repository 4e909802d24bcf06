"""Connections to the database of a ledger: SQLite in WAL mode in a folder, or a server by URL."""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection, Engine, NullPool, StaticPool, create_engine, event, insert, inspect, select, text
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, TimeoutError

from pmemx.core.errors import ConfigError, StorageError
from pmemx.core.extras import install
from pmemx.store import schema
from pmemx.store.shown import shown

BUSY_SECONDS = 60.0
"""How long a writer waits for the one before it."""

# Any number will do; it must only be the same for all writers of one PostgreSQL database.
_LOCK = 0x706D656D78


def is_server(location: str) -> bool:
    """Whether a ledger's location is a database's URL, and not the path of a file."""
    return "://" in location


@contextmanager
def reading(location: str) -> Iterator[Connection]:
    """A transaction that sees one state of the ledger throughout and changes nothing.

    A ledger that does not exist yet reads as an empty one, and nothing is created.
    """
    with _explained(location):
        engine = _reader(location)
        with engine.connect() as connection:
            if not is_server(location):
                connection = connection.execution_options(begin="BEGIN")
            with connection.begin():
                if engine is not _empty() and not _prepared(connection, location):
                    with _empty().connect() as empty:
                        yield empty
                    return
                yield connection


@contextmanager
def writing(location: str) -> Iterator[Connection]:
    """A transaction that is alone in changing the ledger, and makes its tables where they are missing."""
    with _explained(location), _writer(location).connect() as connection, _alone(connection, location):
        prepare(connection, location)
        yield connection


@contextmanager
def repairing(location: str) -> Iterator[Connection]:
    """A transaction that is alone in changing the ledger, whatever its tables are like, and may make them anew."""
    with _explained(location), _writer(location).connect() as connection:
        if not is_server(location):
            # Past SQLAlchemy, which would begin a transaction, and inside one SQLite passes this over.
            connection.connection.cursor().execute("PRAGMA foreign_keys = OFF")
        with _alone(connection, location):
            yield connection


@contextmanager
def _alone(connection: Connection, location: str) -> Iterator[None]:
    if is_server(location):
        with connection.begin():
            connection.execute(select(text("pg_advisory_xact_lock(:key)")).params(key=_LOCK))
            yield
    else:
        connection.execution_options(begin="BEGIN IMMEDIATE")
        with connection.begin():
            yield


def exists(location: str) -> bool:
    """Whether there is anything at a ledger's location; of a server nothing is asked."""
    return is_server(location) or Path(location).is_file()


def revision(connection: Connection) -> str:
    """The migration that a ledger's tables stand for, empty where there are none."""
    if not inspect(connection).has_table("alembic_version"):
        return ""
    return connection.execute(select(schema.alembic_version.c.version_num)).scalar() or ""


def create_tables(connection: Connection) -> None:
    """Every table of this version of pmemx, and the mark of the migration that they stand for."""
    schema.metadata.create_all(connection)
    schema.alembic_version.create(connection, checkfirst=True)
    connection.execute(insert(schema.alembic_version), {"version_num": schema.REVISION})


def prepare(connection: Connection, location: str) -> None:
    """Make the tables where they are missing. Raises StorageError when they are those of another version of pmemx."""
    if not _prepared(connection, location):
        create_tables(connection)


def _prepared(connection: Connection, location: str) -> bool:
    """Whether the tables are there. Raises StorageError when they are those of another version of pmemx."""
    found = revision(connection)
    if found not in ("", schema.REVISION):
        raise StorageError(
            f"the ledger {shown(location)} is of schema {found}, this pmemx reads {schema.REVISION}; "
            f"run `pmemx bank migrate`, or upgrade pmemx where that says the ledger is newer"
        )
    return bool(found)


def server_engine(location: str) -> Engine:
    """The engine of a database server. Raises ConfigError for a URL that no installed driver reads."""
    return _server(location, os.getpid())


# By process: a connection must not be used on both sides of a fork.
@lru_cache(maxsize=16)
def _server(location: str, process: int) -> Engine:
    try:
        made = create_engine(location, pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise ConfigError(
            f"the ledger's URL {location.split('@')[-1]!r} cannot be used ({error}); "
            f"for PostgreSQL write postgresql+psycopg://user@host/database, and run: {install('postgres')}"
        ) from error
    if made.dialect.name != "postgresql":
        raise ConfigError(
            f"the ledger's URL names {made.dialect.name}, but a server is PostgreSQL: write "
            "postgresql+psycopg://user@host/database, or give no database for an SQLite file in the bank's folder"
        )
    return made


def _reader(location: str) -> Engine:
    if is_server(location):
        return server_engine(location).execution_options(isolation_level="REPEATABLE READ")
    file = Path(location)
    try:
        return _sqlite(location, _how_to_read(file)) if file.is_file() else _empty()
    except OSError as error:
        raise StorageError(
            f"{file} cannot be reached ({error.strerror}); change the permissions of its folder"
        ) from error


def _writer(location: str) -> Engine:
    if is_server(location):
        # Whatever the server's default: each statement after the lock must see what the last holder of it committed.
        return server_engine(location).execution_options(isolation_level="READ COMMITTED")
    file = Path(location)
    if not file.parent.is_dir():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"the folder of the bank {file.parent} cannot be made ({error.strerror})") from error
    if not os.access(file.parent, os.W_OK) or (file.exists() and not os.access(file, os.W_OK)):
        raise StorageError(f"{file} is read-only for this process; change its permissions, or copy the bank")
    return _sqlite(location, "rwc")


def _how_to_read(file: Path) -> str:
    if os.access(file.parent, os.W_OK) and os.access(file, os.W_OK):
        return "rw"
    # A reader of a WAL database needs the files beside it, which a read-only folder does not let it make.
    wal = file.with_name(file.name + "-wal")
    if not wal.exists() or wal.stat().st_size == 0:
        return "immutable"
    return "ro" if file.with_name(file.name + "-shm").exists() else "copy"


@lru_cache(maxsize=256)
def _sqlite(location: str, mode: str) -> Engine:
    engine = create_engine("sqlite://", creator=lambda: _connect(Path(location), mode), poolclass=NullPool)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))

    return engine


def _connect(file: Path, mode: str) -> sqlite3.Connection:
    if mode == "copy":
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(shutil.copy(file, folder))
            shutil.copy(file.with_name(file.name + "-wal"), folder)
            connection = _open(copy, "mode=rw")
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()  # reads the WAL before the folder goes
            return connection
    connection = _open(file, "immutable=1" if mode == "immutable" else f"mode={mode}")
    if mode == "rwc":
        connection.execute("PRAGMA journal_mode = WAL")
    if mode in ("rw", "rwc"):
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _open(file: Path, option: str) -> sqlite3.Connection:
    # isolation_level None: the driver begins no transaction of its own, so that BEGIN IMMEDIATE is ours to say.
    return sqlite3.connect(
        f"file:{quote(str(file.absolute()))}?{option}", uri=True, isolation_level=None, timeout=BUSY_SECONDS
    )


@lru_cache(maxsize=1)
def _empty() -> Engine:
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    with engine.begin() as connection:
        create_tables(connection)
    return engine


@contextmanager
def _explained(location: str) -> Iterator[None]:
    try:
        yield
    except IntegrityError:  # a mistake of ours, not of the disk's
        raise
    except DBAPIError as error:
        raise StorageError(f"the ledger {shown(location)} refuses: {error.orig}; {_remedy(str(error.orig))}") from error
    except TimeoutError as error:
        raise StorageError(
            f"the ledger {shown(location)} has no connection free for this thread ({error}); use fewer threads at once"
        ) from error
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{error.object[error.start : error.end]!r} is half a character, which no database keeps; leave it out"
        ) from error
    except sqlite3.Error as error:
        raise StorageError(f"the ledger {shown(location)} refuses: {error}; {_remedy(str(error))}") from error


def _remedy(message: str) -> str:
    for sign, remedy in _REMEDIES.items():
        if sign in message:
            return remedy
    return "nothing was changed"


_REMEDIES = {
    "full": "free some space on its disk and try again; nothing was changed",
    "readonly": "change its permissions, or copy the bank; nothing was changed",
    "lock": "another process holds it for long; end that one and try again; nothing was changed",
    "no such table": "rebuild its tables from the journal (pmemx bank rebuild)",
    "no such column": "rebuild its tables from the journal (pmemx bank rebuild)",
    'relation "': "rebuild its tables from the journal (pmemx bank rebuild)",
    "malformed": "restore it from a copy of the bank",
    "not a database": "restore it from a copy of the bank",
    # A sync that failed: what was to be synced may still be found after the next start.
    "disk I/O": "check the disk; the last change may not be lost, so see whether it was kept before you repeat it",
    "unable to open": "let this process read and write its folder, and see that the disk is not full; nothing was changed",
    "connection": "start the server, or correct the URL",
}
