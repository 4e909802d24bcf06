"""A PostgreSQL server for tests: the one that PMEMX_TEST_DATABASE names, or a private one that is stopped afterwards.

Import the fixture `database` where it is needed; every test gets a database of its own, whose URL it is.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

# Nothing here has to outlive a power cut: without fsync a test waits for no disk.
SETTINGS = (
    "-c fsync=off -c synchronous_commit=off -c full_page_writes=off -c max_connections=200 -c listen_addresses=''"
)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a server on which databases may be made."""
    if given := os.environ.get("PMEMX_TEST_DATABASE"):
        yield given
        return
    programs = _programs()
    if programs is None:
        reason = "no PostgreSQL server is installed (/usr/lib/postgresql/*/bin); name one in PMEMX_TEST_DATABASE"
        if "postgres" in os.environ.get("PMEMX_REQUIRE", "").split():
            pytest.fail(reason)
        pytest.skip(reason)
    # Not pytest's own folder: the path of a socket has at most 107 characters, and the user postgres must reach it.
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="pmemx-pg-", dir="/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        data = folder / "data"
        _as_postgres(
            programs / "initdb", "-D", data, "-U", "pmemx", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"
        )
        started = f"{SETTINGS} -k {folder}"
        _as_postgres(programs / "pg_ctl", "-D", data, "-l", folder / "log", "-w", "-o", started, "start")
        stack.callback(_as_postgres, programs / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
        yield f"postgresql+psycopg://pmemx@/postgres?host={folder}"


@pytest.fixture
def database(postgres: str) -> Iterator[str]:
    """URL of a database of the test's own; it is dropped after the test."""
    name = f"pmemx_{uuid.uuid4().hex}"
    run_sql(postgres, f"CREATE DATABASE {name}")
    yield make_url(postgres).set(database=name).render_as_string(hide_password=False)
    run_sql(postgres, f"DROP DATABASE {name} WITH (FORCE)")


def run_sql(url: str, statement: str) -> None:
    """Run one statement outside of any transaction."""
    place = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(place, autocommit=True) as connection:
        connection.execute(statement.encode())


@cache
def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda file: int(file.parts[-3]))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return Path(initdb).resolve().parent if initdb else None


def _as_postgres(*command: str | Path) -> None:
    """Run a program as the user postgres where we are root, whom PostgreSQL refuses."""
    user = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
    done = subprocess.run(
        command,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if "start" not in command else subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        text=True,
        **({"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}),
    )
    assert done.returncode == 0, f"{command[0]} failed: {done.stdout}"
