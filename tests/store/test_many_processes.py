"""Eight processes at one bank, and threads and forks: no change is lost, no look is torn, the journal has no gap."""

import os
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pmemx.core.errors import ConfigError, StorageError, UnknownBlock
from pmemx.store.bank import Bank
from pmemx.store.verification import findings
from tests.store.conftest import FULL
from tests.store.postgres import run_sql
from tests.store.workers import KINDS, Child, commit, commit_one, contents, read_for, write_for

SECONDS = float(os.environ.get("PMEMX_SECONDS", "60" if FULL else "8"))
"""How long many processes work at one bank."""


def test_eight_processes_lose_no_change_and_see_no_torn_state(new_bank: Callable[[], Bank]) -> None:
    for name in ("counter", "left", "right"):
        commit(new_bank(), name, 1)
    writers = [Child(write_for, new_bank(), me, SECONDS) for me in range(4)]
    readers = [Child(read_for, new_bank(), SECONDS) for _ in range(4)]
    for child in (*writers, *readers):
        child.go()
    written: Counter[str] = Counter()
    for child in writers:
        counts = child.report()
        assert isinstance(counts, dict), counts
        written.update(counts)
    looks = [child.report() for child in readers]
    assert all(isinstance(look, dict) and look["look"] > 0 for look in looks), looks
    assert all(written[kind] > 0 for kind in KINDS), written

    bank = new_bank()
    held = contents(bank)
    assert held["counter"] == (tuple(range(1, written["increment"] + 2)), {})
    assert held["left"] == held["right"] == (tuple(range(1, written["transaction"] + 2)), {})
    for name in held:
        assert [version.number for version in bank.history(name)] == list(range(1, len(held[name][0]) + 1))
    assert list(findings(bank)) == []


def test_eight_processes_may_make_one_bank_at_the_same_moment(new_bank: Callable[[], Bank]) -> None:
    names = {f"block {number}" for number in range(8)}
    children = [Child(commit_one, new_bank(), name) for name in sorted(names)]
    for child in children:
        child.go()
    assert [child.report() for child in children] == ["end"] * 8
    assert set(new_bank().names()) == names
    assert list(findings(new_bank())) == []


def test_threads_share_a_bank(new_bank: Callable[[], Bank]) -> None:
    bank = new_bank()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: bank.names(), range(40))) == [()] * 40  # before it is there
        list(pool.map(lambda number: commit(bank, f"block {number % 4}", number), range(24)))
        assert len(list(pool.map(lambda name: contents(bank)[name], bank.names()))) == 4
    assert sum(len(numbers) for numbers, _ in contents(bank).values()) == 24
    assert list(findings(bank)) == []


def test_a_thread_waits_for_the_transaction_of_another(new_bank: Callable[[], Bank]) -> None:
    bank, inside, done = new_bank(), threading.Event(), []

    def other() -> None:
        inside.wait()
        commit(bank, "second", 2)
        done.append("second")

    thread = threading.Thread(target=other)
    thread.start()
    with bank.transaction():
        commit(bank, "first", 1)
        inside.set()
        thread.join(0.3)
        done.append("first")
    thread.join()
    assert done == ["first", "second"]
    assert list(findings(bank)) == []


def test_a_fork_inside_a_transaction_does_not_join_it(new_bank: Callable[[], Bank]) -> None:
    bank = new_bank()
    commit(bank, "law", 1)
    reading, writing = os.pipe()
    with bank.transaction():
        commit(bank, "law", 2)
        child = os.fork()
        if child == 0:
            try:
                os.write(writing, repr([version.number for version in bank.history("law")]).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.read() == "[1]"
    assert contents(bank) == {"law": ((1, 2), {})}


# ---------------------------------------------------------------------------------------------------------- PostgreSQL


def test_a_broken_connection_undoes_the_transaction_and_is_named(database: str, tmp_path: Path) -> None:
    bank = Bank(tmp_path / "bank", database)
    commit(bank, "law", 1)
    broken = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"

    def cut() -> None:
        with bank.transaction():
            commit(bank, "law", 2)
            run_sql(database, broken)
            commit(bank, "law", 3)

    with pytest.raises(StorageError, match="connection"):
        cut()
    assert contents(bank) == {"law": ((1,), {})}
    commit(bank, "law", 2)
    assert contents(bank) == {"law": ((1, 2), {})}


def test_a_server_whose_default_is_a_stricter_isolation_serves_many_writers(database: str, tmp_path: Path) -> None:
    name = database.split("?")[0].rpartition("/")[2]
    run_sql(database, f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    bank = Bank(tmp_path / "bank", database)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: commit(replace(bank), f"block {number % 3}", number), range(18)))
    assert sum(len(numbers) for numbers, _ in contents(bank).values()) == 18
    assert list(findings(bank)) == []


def test_a_server_that_is_not_there_is_named_without_its_password(tmp_path: Path) -> None:
    bank = Bank(tmp_path / "bank", "postgresql+psycopg://someone:hidden@127.0.0.1:1/nowhere")
    for question in (bank.names, lambda: commit(bank, "law", 1)):
        with pytest.raises(StorageError, match=r"(?s)127\.0\.0\.1:1/nowhere refuses: .* start the server") as raised:
            question()
        assert "hidden" not in str(raised.value)


@pytest.mark.parametrize("url", ["sqlite:///bank.db", "nonsense://x", "postgresql+nothing://x/y", "://"])
def test_a_url_of_no_postgresql_server_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"postgresql\+psycopg://user@host/database"):
        Bank(tmp_path / "bank", url).names()


def test_two_banks_in_two_databases_do_not_meet(database: str, tmp_path: Path) -> None:
    commit(Bank(tmp_path / "bank", database), "law", 1)
    with pytest.raises(UnknownBlock):
        Bank(tmp_path / "bank").find("law")
