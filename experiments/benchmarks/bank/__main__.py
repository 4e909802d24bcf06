"""Time a bank of 10,000 blocks: python -m experiments.benchmarks.bank [--quick] [--database URL] [--out FOLDER]."""

import argparse
import json
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

from pmemx.store.bank import Bank

from .banks import copy, grow
from .questions import Row, commits, questions, timed

TARGET = 50.0
"""Milliseconds that the median of a list, a search, a log or a tag may take at the largest size."""

FLAT = 1.25
"""What a commit at the largest size may cost of one at the smallest."""


def measure(sizes: Sequence[int], rounds: int, memory: Path, disk: Path) -> tuple[list[Row], dict[str, object]]:
    """Rows on SQLite, first in memory, so that no disk is waited for, then on the disk."""
    begin = perf_counter()
    bank = Bank(memory / "bank", principal="root")
    banks = {size: copy(bank, memory / f"bank of {size}") for size in grow(bank, sizes)}
    facts: dict[str, object] = {"seconds_to_build": round(perf_counter() - begin, 1)}
    rows = _rows(banks, rounds, ledger="sqlite", place="memory")
    on_disk = {size: copy(small, disk / f"bank of {size}") for size, small in banks.items()}
    rows += _rows(on_disk, rounds, ledger="sqlite", place="disk")
    facts["opening"] = _opening(banks[sizes[-1]])
    facts["opening_of_the_smallest"] = _opening(banks[sizes[0]])
    return rows, facts


def measure_server(sizes: Sequence[int], rounds: int, memory: Path, database: str) -> list[Row]:
    """Rows on a server, whose database must be empty; a commit is timed as the bank grows, not in turns."""
    bank = Bank(memory / "server", database, principal="root")
    rows: list[Row] = []
    for size in grow(bank, sizes):
        asked = {(part, size): ask for part, ask in commits(bank, size).items()}
        if size == sizes[-1]:
            asked |= {(part, size): ask for part, ask in questions(bank, size).items()}
        rows += timed(asked, rounds, ledger="postgresql", place="server")
    return rows


def _rows(banks: dict[int, Bank], rounds: int, *, ledger: str, place: str) -> list[Row]:
    largest = max(banks)
    asked = {(part, largest): ask for part, ask in questions(banks[largest], largest).items()}
    rows = timed(asked, rounds, ledger=ledger, place=place)
    committed = {(part, size): ask for size, bank in banks.items() for part, ask in commits(bank, size).items()}
    return rows + timed(committed, rounds, ledger=ledger, place=place)


def _opening(bank: Bank) -> object:
    command = [sys.executable, "-m", "experiments.benchmarks.bank.opening", str(bank.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def verdicts(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Each target with what was found."""
    found: list[dict[str, object]] = []
    for ledger, place in dict.fromkeys((row.ledger, row.place) for row in rows):
        own = [row for row in rows if (row.ledger, row.place) == (ledger, place)]
        largest, smallest = max(row.blocks for row in own), min(row.blocks for row in own)
        said: dict[str, object] = {"ledger": ledger, "place": place}
        for row in own:
            if row.blocks == largest and not row.operation.startswith("commit"):
                wall, processor = row.wall.median, row.processor.median
                figures = {"milliseconds": wall, "processor": processor, "target": TARGET, "met": wall <= TARGET}
                found.append(said | {"operation": row.operation} | figures)
        for operation in dict.fromkeys(row.operation for row in own if row.operation.startswith("commit")):
            by_size = {row.blocks: row for row in own if row.operation == operation}
            ratio = by_size[largest].wall.median / by_size[smallest].wall.median
            processor = by_size[largest].processor.median / by_size[smallest].processor.median
            figures = {"ratio": ratio, "processor_ratio": processor, "target": FLAT, "met": ratio <= FLAT}
            found.append(said | {"operation": f"{operation}, {largest} / {smallest} blocks"} | figures)
    return found


def _machine() -> dict[str, object]:
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "sqlalchemy": version("sqlalchemy"),
    }


def main() -> None:
    """Measure, print every row, and write record.json."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.bank", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few blocks: everything runs, no number means anything")
    parser.add_argument("--database", default="", help="URL of an empty PostgreSQL database to time as well")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of record.json")
    chosen = parser.parse_args()
    sizes, rounds = ((10, 30), 3) if chosen.quick else ((10, 100, 1_000, 10_000), 21)
    begin, shm = perf_counter(), Path("/dev/shm")
    load = _machine()
    with (
        tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else None) as memory,
        tempfile.TemporaryDirectory() as disk,
    ):
        rows, facts = measure(sizes, rounds, Path(memory), Path(disk))
        if chosen.database:
            rows += measure_server(sizes, rounds, Path(memory), chosen.database)
    for row in rows:
        print(
            f"{row.ledger:10} {row.place:6} {row.blocks:6} {row.operation:28} {row.answers:6} answers  "
            f"{row.wall.median:8.2f} [{row.wall.low:.2f}, {row.wall.high:.2f}] ms, processor {row.processor.median:.2f}"
        )
    record = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(perf_counter() - begin),
        "machine": load,
        "rows": [asdict(row) for row in rows],
        "targets": verdicts(rows),
        **facts,
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "record.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
