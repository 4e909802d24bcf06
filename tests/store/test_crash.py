"""kill -9 at every step of a write, and at random moments: what was reported is there, and nothing is half visible."""

import random
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from pmemx.store.bank import Bank
from tests.store.conftest import FULL, require
from tests.store.workers import (
    LEDGER_FIRST,
    NOT_TOGETHER,
    SOUND,
    Child,
    Contents,
    Way,
    endless,
    examine,
    perform,
    script,
)  # fmt: skip

CALLS = "write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,ftruncate,fallocate,mkdir,mkdirat"
"""Every call by which a writer changes or syncs a file; a state of the disk is what lies between two of them."""

# What a bank holds after that many steps of the script: the number in each version of each block, and the block's tags.
AFTER_STEPS: tuple[Contents, ...] = (
    {},
    {"law": ((1,), {})},
    {"law": ((1, 2), {})},
    {"law": ((1, 2), {"stable": 1})},
    {"law": ((1, 2, 1), {"stable": 1})},
    {"law": ((1, 2, 1), {"stable": 1}), "left": ((7,), {}), "right": ((7,), {})},
)
NUM_STEPS = len(AFTER_STEPS) - 1


def after_pairs(num_steps: int) -> Contents:
    """What a bank holds after that many steps of the endless program."""
    numbers = tuple(range(1, num_steps + 1))
    return {"law": (numbers, {"newest": num_steps}), "twin": (numbers, {})} if numbers else {}


def faults_seen_by_another(bank: Bank, expected: Sequence[Contents]) -> list[str]:
    """What a fresh process finds wrong with a bank that should hold one of these."""
    child = Child(examine, bank, expected)
    child.go()
    return child.report()


@contextmanager
def traced(child: Child, *options: str, log: str = "/dev/null") -> Iterator[None]:
    """strace attached to a child until it ends."""
    command = ["strace", "-o", log, "-p", str(child.pid), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        first = tracer.stderr.readline()
        assert "attached" in first, f"strace may not trace here: {first}"
        yield


# ---------------------------------------------------------------------------------------------------------- every step


def calls_of_a_writer(folder: Path) -> list[tuple[str, int]]:
    """The calls that the script makes, in their order: which one, and the how manieth of its kind."""
    child, log = Child(perform, Bank(folder / "whole"), script, SOUND), folder / "log"
    with traced(child, "-e", f"trace={CALLS}", log=str(log)):
        child.go()
        assert child.finish() == (NUM_STEPS, "end")
    seen: Counter[str] = Counter()
    made = []
    for call in re.findall(r"^(\w+)\(", log.read_text(), re.MULTILINE):
        seen[call] += 1
        made.append((call, seen[call]))
    return made


def after_kill(point: tuple[str, int], *, folder: Path, way: Way) -> list[str] | None:
    """What is wrong with a bank whose writer was killed before that call; None where all is well and it did not come to that call."""
    call, nth = point
    bank = Bank(folder / f"{call} {nth}")
    child = Child(perform, bank, script, way)
    with traced(child, "-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={nth}"):
        child.go()
        done, last = child.finish()
    wrong = faults_seen_by_another(bank, AFTER_STEPS[done : done + 2])
    shutil.rmtree(bank.path, ignore_errors=True)
    assert last in (None, "end"), last
    return wrong if wrong or last is None else None


def kills(folder: Path, way: Way, stride: int) -> list[list[str]]:
    """What is wrong after each kill, one at every stride-th call of a writer."""
    points = calls_of_a_writer(folder)[::stride]
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(partial(after_kill, folder=folder, way=way), points))
    return [wrong for wrong in outcomes if wrong is not None]


def test_a_writer_killed_at_any_call_leaves_a_whole_bank(memory: Path) -> None:
    require("strace")
    outcomes = kills(memory, SOUND, stride=1 if FULL else 5)
    assert [wrong for wrong in outcomes if wrong] == []
    assert len(outcomes) >= (500 if FULL else 100)


@pytest.mark.parametrize("way", [LEDGER_FIRST, NOT_TOGETHER], ids=["ledger first", "not together"])
def test_the_kills_find_a_writer_that_does_it_wrong(way: Way, memory: Path) -> None:
    require("strace")
    assert any(kills(memory, way, stride=41))


def test_nothing_is_named_before_it_is_on_the_disk(memory: Path) -> None:
    """A power cut keeps only what was synced: so bytes are synced before their name, and objects before the ledger."""
    require("strace")
    child, log = Child(perform, Bank(memory / "bank"), script, SOUND), memory / "log"
    with traced(child, "-y", "-e", f"trace={CALLS},openat,sendto", log=str(log)):
        child.go()
        assert child.finish() == (NUM_STEPS, "end")
    # SQLite's own temporaries, which have no name while they are used, lie elsewhere.
    lines = [line for line in log.read_text().splitlines() if str(memory) in line or line.startswith("sendto")]
    assert list(unsynced(lines)) == []
    assert list(unsynced([line for line in lines if not re.match(r"fsync\(\d+<[^>]*\.tmp>", line)]))
    assert list(unsynced([line for line in lines if not re.match(r"fsync\(\d+<[^>]*/[0-9a-f]{2}>", line)]))
    assert list(unsynced([line for line in lines if not re.match(r"fdatasync\(\d+<[^>]*-wal>", line)]))


def unsynced(lines: list[str]) -> Iterator[str]:
    """What a trace shows to be relied on while it is only in memory: by a name, by the ledger, by a report."""
    files: set[str] = set()  # written, not synced
    names: set[tuple[str, str]] = set()  # made in a folder, the folder not synced
    for line in lines:
        call, _, rest = line.partition("(")
        paths = re.findall(r'"([^"]*)"', rest)
        opened = match[1] if (match := re.match(r"\d+<([^>]*)>", rest)) else ""
        if call in ("write", "pwrite64") and not opened.endswith("-shm"):
            if "/blobs/" not in opened and (late := {path for path in files if "/blobs/" in path}):
                yield f"the ledger is written before {late}"
            if "/blobs/" not in opened and (late := {path for _, path in names if "/blobs/" in path}):
                yield f"the ledger is written before the names of {late}"
            if opened.endswith(".db") and (late := {path for path in files if path.endswith("-wal")}):
                yield f"the database is written before {late}"
            files.add(opened)
        elif call in ("fsync", "fdatasync"):
            files.discard(opened)
            names = {(folder, path) for folder, path in names if folder != opened}
        elif call in ("mkdir", "rename") or (call == "openat" and "O_CREAT" in line and not paths[0].endswith("-shm")):
            made = paths[-1]
            if call == "rename" and paths[0] in files:
                yield f"{paths[0]} gets its name before its bytes are synced"
            if call == "rename":
                names = {(folder, path) for folder, path in names if path != paths[0]}
            if call != "openat" or "O_EXCL" in line or made not in {path for _, path in names}:
                names.add((str(Path(made).parent), made))
        elif call == "unlink":
            files.discard(paths[0])
            names = {(folder, path) for folder, path in names if path != paths[0]}
        elif call == "sendto" and (files or names):
            yield f"a step is reported before {files or names} are synced"


# ------------------------------------------------------------------------------------------------------- random moments


def random_kills(bank: Bank, num_kills: int, seed: int) -> Iterator[list[str]]:
    """What is wrong with a bank after each of some kills of its writer, each at a random moment.

    How many steps a writer reports before its kill is drawn. How far it comes in the moment after is left to the machine.
    """
    draw, reported, before = random.Random(seed), 0, 0
    for _ in range(num_kills):
        child = Child(perform, bank, endless, SOUND)
        child.go()
        seen = sum(child.report() == "done" for _ in range(draw.randrange(3)))
        time.sleep(draw.uniform(0, 0.05))
        child.kill()
        done, last = child.finish()
        assert last is None, last
        expected = [after_pairs(before + seen + done), after_pairs(before + seen + done + 1)]
        yield faults_seen_by_another(bank, expected)
        before, reported = len(bank.history("law")) if "law" in bank.names() else 0, reported + seen
    assert before >= reported > 0


def test_a_writer_killed_at_any_moment_leaves_a_whole_bank(memory: Path) -> None:
    rounds = 20 if FULL else 8
    outcomes = [wrong for seed in range(rounds) for wrong in random_kills(Bank(memory / str(seed)), 10, seed)]
    assert [wrong for wrong in outcomes if wrong] == []
    assert len(outcomes) == 10 * rounds


def test_a_writer_of_a_server_killed_at_any_moment_leaves_a_whole_bank(database: str, memory: Path) -> None:
    outcomes = list(random_kills(Bank(memory / "bank", database), 20, 0))
    assert [wrong for wrong in outcomes if wrong] == []
    assert len(outcomes) == 20
