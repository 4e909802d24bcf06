"""The small bank with everything in it, made once and copied for every test."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pmemx.store.governed import GovernedStore
from tests.page.page_banks import Hands, opened, stocked, with_members
from tests.store.conftest import memory
from tests.store.postgres import database, postgres

__all__ = ["database", "memory", "postgres"]


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two such banks: "plain", and "governed" with members."""
    folder = tmp_path_factory.mktemp("stock")
    stocked(folder / "plain", Hands())
    shutil.copytree(folder / "plain", folder / "governed")
    with_members(later(folder / "governed", Hands()))
    return folder


@pytest.fixture
def clock() -> Hands:
    """The clock of a test's banks."""
    return Hands()


@pytest.fixture
def store(stock: Path, memory: Path, clock: Hands) -> GovernedStore:
    """A bank of root's without members."""
    shutil.copytree(stock / "plain", memory / "plain")
    return later(memory / "plain", clock)


@pytest.fixture
def governed(stock: Path, memory: Path, clock: Hands) -> GovernedStore:
    """The same bank with members; as root."""
    shutil.copytree(stock / "governed", memory / "governed")
    return replace(later(memory / "governed", clock), token="root's own")


def later(folder: Path, clock: Hands) -> GovernedStore:
    """A stocked bank at the time of its last entry."""
    clock.turn(hours=1)
    return opened(folder, clock)
