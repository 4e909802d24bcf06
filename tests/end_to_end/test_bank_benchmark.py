"""The benchmark of a bank at tiny sizes, and what it times as counts: statements, plans and bytes read. No time is asserted."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event

from experiments.benchmarks.bank.banks import grow, name
from experiments.benchmarks.bank.questions import commits, questions
from pmemx.store.bank import Bank

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
SIZES = (10, 300)


def test_every_question_is_recorded_with_its_quartiles_and_its_target(tmp_path: Path):
    command = [sys.executable, "-m", "experiments.benchmarks.bank", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    record = json.loads((tmp_path / "record.json").read_text())
    asked = set(questions(Bank(tmp_path), 30)) | set(commits(Bank(tmp_path), 30))
    for place in ("memory", "disk"):
        rows = [row for row in record["rows"] if row["place"] == place]
        assert {row["operation"] for row in rows} == asked
        assert {row["blocks"] for row in rows if row["operation"] == "commit"} == {10, 30}
        assert {row["answers"] for row in rows if row["operation"] == "list"} == {30}
    assert all(
        row[clock]["low"] <= row[clock]["median"] <= row[clock]["high"]
        for row in rows
        for clock in ("wall", "processor")
    )
    assert len(record["targets"]) == 2 * len(asked)


@pytest.fixture(scope="module")
def banks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Bank]:
    """A bank of each size."""
    made = {size: Bank(tmp_path_factory.mktemp(f"of {size}"), principal="root") for size in SIZES}
    for size, bank in made.items():
        assert list(grow(bank, (size,))) == [size]
    return made


@contextmanager
def statements() -> Iterator[list[tuple[str, Any]]]:
    """The statements that any database runs inside, with their parameters."""
    found: list[tuple[str, Any]] = []

    def note(connection: Connection, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        found.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def asked_of(bank: Bank, size: int) -> dict[str, Callable[[], int]]:
    return questions(bank, size) | commits(bank, size)


def run(ask: Callable[[], int]) -> list[tuple[str, Any]]:
    ask()  # what is done once a process is no part of it
    with statements() as found:
        ask()
    return found


def test_the_number_of_statements_does_not_depend_on_the_number_of_blocks(banks: dict[int, Bank]):
    counts = {
        size: {operation: len(run(ask)) for operation, ask in asked_of(bank, size).items()}
        for size, bank in banks.items()
    }
    assert counts[10] == counts[300]
    assert max(counts[300].values()) < 40


@pytest.mark.parametrize("operation", ["show", "log", "tag", "commit", "commit, ledger alone"])
def test_what_is_about_one_block_scans_no_table(banks: dict[int, Bank], operation: str):
    bank = banks[300]
    found = run(asked_of(bank, 300)[operation])
    plans: list[str] = []
    with bank.ledger.reading() as now:
        for statement, parameters in found:
            if statement.lstrip().startswith(("SELECT", "UPDATE", "DELETE")):
                rows = now.connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
                plans += [row[3] for row in rows]
    assert plans
    # Of these three each is as long as the bank has members, policies, or is one row.
    short = ("SCAN alembic_version", "SCAN principals", "SCAN policies", "SCAN bank")
    # The last entry of the journal is found by its key from the end, which SQLite calls a scan too.
    last = ("SCAN journal",)
    assert [plan for plan in plans if plan.startswith("SCAN") and not plan.startswith((*short, *last))] == []
    ends = [statement for statement, _ in found if "FROM journal" in statement and "WHERE" not in statement]
    assert all("ORDER BY journal.seq DESC" in statement and "LIMIT" in statement for statement in ends)


def opening(bank: Bank) -> dict[str, dict[str, int]]:
    command = [sys.executable, "-m", "experiments.benchmarks.bank.opening", str(bank.path)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_opening_a_bank_reads_nothing_and_a_block_reads_no_others(banks: dict[int, Bank]):
    small, large = opening(banks[10]), opening(banks[300])
    assert small["construct"] == large["construct"] == {"files": 0, "bytes": 0}
    assert large["find"]["files"] == small["find"]["files"] == 1  # the ledger
    assert large["read"]["files"] == small["read"]["files"]
    # A tree of 300 blocks may be a page deeper than one of 10, here and there.
    pages = 16 * 4096
    assert large["find"]["bytes"] <= small["find"]["bytes"] + pages
    assert large["read"]["bytes"] <= small["read"]["bytes"] + pages
    assert (Path(banks[300].path) / "bank.db").stat().st_size > 10 * pages


def test_a_grown_bank_holds_every_block_once(banks: dict[int, Bank]):
    assert Bank(banks[300].path, principal="root").names() == tuple(name(number) for number in range(300))
