"""What the tests of the store share: a PostgreSQL server, places for a bank, and how thorough to be."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pmemx.store.bank import Bank
from tests.store.postgres import database, postgres

__all__ = ["FULL", "database", "memory", "new_bank", "postgres", "require"]

FULL = os.environ.get("PMEMX_FULL") == "1"
"""Whether the tests may take minutes."""


def require(program: str) -> None:
    """Skip a test whose program is missing, unless PMEMX_REQUIRE names it: then the test fails."""
    if shutil.which(program) is None:
        reason = f"{program} is not installed"
        if program in os.environ.get("PMEMX_REQUIRE", "").split():
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: what a killed process wrote is all there, and no test waits for a disk."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="pmemx-", dir=shm if os.access(shm, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def new_bank(request: pytest.FixtureRequest, memory: Path) -> Callable[[], Bank]:
    """Makes the bank of a test on each kind of ledger, equal each time."""
    url = request.getfixturevalue("database") if request.param == "postgresql" else ""
    return lambda: Bank(memory / "bank", url)
