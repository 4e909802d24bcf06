"""A disk that fails, is full, is read-only or lies at an odd path: the state before stays whole, and the error says why."""

import json
import mmap
import os
import resource
import shutil
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.errors import CorruptBlock, StorageError
from pmemx.export.peft import PeftExport
from pmemx.store import engine
from pmemx.store.bank import Bank
from pmemx.store.governed import GovernedStore
from pmemx.store.verification import findings
from tests.store.conftest import FULL, require
from tests.store.test_crash import AFTER_STEPS, NUM_STEPS, calls_of_a_writer, faults_seen_by_another, traced
from tests.store.workers import SOUND, Child, commit, contents, made, perform, script

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a disk or become another user")
NOBODY = 65534


# ------------------------------------------------------------------------------------------------- calls that fail


def after_failure(point: tuple[str, int], *, error: str, when: str, folder: Path) -> tuple[str, list[str]]:
    """What a writer said last when that call failed, and what is wrong with its bank then."""
    call, nth = point
    bank = Bank(folder / f"{call} {nth}")
    child = Child(perform, bank, script, SOUND)
    options = ("-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={nth}{when}")
    with traced(child, *options):
        child.go()
        done, last = child.finish()
    if last == "end":
        assert done == NUM_STEPS
        wrong = faults_seen_by_another(bank, AFTER_STEPS[-1:])
    else:
        name, message = last
        # After a failed sync nobody knows what the disk holds; then the error has to say so.
        unknown = "see whether it was kept" in message
        wrong = faults_seen_by_another(bank, AFTER_STEPS[done : done + 1 + unknown])
        if name != "StorageError" or str(bank.path) not in message:
            wrong.append(f"{name}: {message}")
    shutil.rmtree(bank.path, ignore_errors=True)
    return last if isinstance(last, str) else last[1], wrong


@pytest.mark.parametrize("when", ["", "+"], ids=["once", "from then on"])
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_a_call_that_fails_leaves_the_state_before_it_and_names_place_and_cause(
    error: str, when: str, memory: Path
) -> None:
    require("strace")
    points = calls_of_a_writer(memory)[:: 8 if FULL else 24]
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(partial(after_failure, error=error, when=when, folder=memory), points))
    assert [(point, *outcome) for point, outcome in zip(points, outcomes, strict=True) if outcome[1]] == []
    assert sum(said != "end" for said, _ in outcomes) >= len(points) // 2


# --------------------------------------------------------------------------------------------------------------- full


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A disk in memory, mounted with these options."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(bank: Bank, size: int) -> tuple[int, str]:
    """Commit versions until the disk refuses: how many were kept, and the refusal."""
    for number in range(1, 10_000):
        try:
            bank.commit(*made("law", number, size), message="m" * 2000)
        except StorageError as error:
            return number - 1, str(error)
    raise AssertionError("the disk is not full after 10000 versions")


@as_root
@pytest.mark.parametrize("size", [64, 200_000], ids=["by the ledger", "by the objects"])
def test_a_full_disk_keeps_every_reported_version_and_takes_more_once_there_is_room(size: int, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=3m") as disk:
        bank, ballast = Bank(disk / "bank"), disk / "ballast"
        ballast.write_bytes(bytes(1_000_000))
        kept, refusal = fill(bank, size)
        assert kept >= 4
        assert str(disk) in refusal
        assert "space" in refusal or "full" in refusal
        ballast.unlink()
        assert contents(bank) == {"law": (tuple(range(1, kept + 1)), {})}
        assert list(findings(bank)) == []
        commit(bank, "law", 77)
        assert contents(bank)["law"][0] == (*range(1, kept + 1), 77)


@as_root
def test_a_full_disk_for_the_ledger_alone_undoes_the_transaction(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=1m") as disk:
        bank, ballast = Bank(tmp_path / "bank"), disk / "ballast"
        (tmp_path / "bank").mkdir()
        ledger = disk / "bank"
        ledger.mkdir()
        (tmp_path / "bank" / "bank.db").symlink_to(ledger / "bank.db")
        ballast.write_bytes(bytes(200_000))
        kept, refusal = fill(bank, 64)
        assert "full" in refusal
        assert "bank.db" in refusal
        ballast.unlink()
        assert contents(bank) == {"law": (tuple(range(1, kept + 1)), {})}
        commit(bank, "law", 77)
        assert list(findings(bank)) == []


def in_a_fork(task: Callable[[], object]) -> Any:
    """What a task gives in a forked process, whose limits and user it may change: a JSON value, or the text of its error."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = json.dumps(task())
        except BaseException:
            said = json.dumps(traceback.format_exc())
        try:
            os.write(writing, said.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = json.loads(pipe.read())
    os.waitpid(child, 0)
    return said


def test_a_limit_on_the_size_of_files_stops_a_writer_and_harms_nothing(memory: Path) -> None:
    bank = Bank(memory / "bank")

    def limited() -> tuple[int, str]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        return fill(bank, 64)

    kept, refusal = in_a_fork(limited)
    assert kept > 5
    assert str(bank.path) in refusal
    assert contents(bank) == {"law": (tuple(range(1, kept + 1)), {})}
    commit(bank, "law", 0)
    assert list(findings(bank)) == []


# ---------------------------------------------------------------------------------------------------------- read-only


def block(name: str, fill: float) -> CapabilityBlock:
    factors = {"model.layers.0.q_proj": LoraFactors(torch.full((2, 3), fill), torch.full((4, 2), fill), 0.5)}
    return CapabilityBlock(BlockCard(name, "domain", "b" * 64), factors)


def look_at(folder: Path) -> list[object]:
    """Every kind of reading, and what a write is told."""
    store = GovernedStore(folder)
    (exported,) = PeftExport().export([store.get("law")], Path(tempfile.mkdtemp()))
    with pytest.raises(StorageError, match=r"(?i)read-only|permission") as raised:
        store.put(block("law", 9.0))
    for change in (lambda: store.tag("law@1", "late"), lambda: store.rollback("law", 1)):
        with pytest.raises(StorageError, match=r"bank\.db is read-only for this process; .*copy the bank"):
            change()
    looks = (
        store.names(), [version.number for version in store.history("law")], store.tags("law"),
        store.get("law").factors["model.layers.0.q_proj"].A[0, 0].item(), store.verify(),
        sorted(file.name for file in exported.iterdir()), str(folder) in str(raised.value),
    )  # fmt: skip
    return list(looks)


EXPORTED = ["adapter_config.json", "adapter_model.safetensors"]


def as_nobody(task: Callable[[], object]) -> Any:
    """What a task gives to another user."""

    def other() -> object:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return task()

    return in_a_fork(other)


@as_root
def test_another_user_reads_everything_and_is_told_that_writing_is_not_theirs(memory: Path) -> None:
    memory.chmod(0o755)
    store = GovernedStore(memory / "bank")
    store.put(block("law", 1.0))
    store.put(block("law", 2.0))
    store.tag("law@1", "stable")
    looked = as_nobody(lambda: look_at(memory / "bank"))
    assert looked[:5] == [["law"], [1, 2], {"stable": 1}, 2.0, []], looked
    assert set(EXPORTED) <= set(looked[5]) and looked[6]


@as_root
@pytest.mark.parametrize("with_index", [True, False], ids=["with its index", "without its index"])
def test_another_user_sees_what_a_killed_writer_left_in_the_log(with_index: bool, memory: Path) -> None:
    memory.chmod(0o755)
    place = memory / "bank"
    store = GovernedStore(place)
    store.put(block("law", 1.0))
    connection = engine._connect(place / "bank.db", "rw")  # an open reader keeps the log from being folded in
    connection.execute("SELECT * FROM journal").fetchone()
    store.put(block("law", 2.0))
    store.tag("law@1", "stable")
    # What is on the disk now is what a kill would leave.
    left = memory / "left"
    shutil.copytree(place, left)
    connection.close()
    assert (left / "bank.db-wal").stat().st_size > 0
    if not with_index:
        (left / "bank.db-shm").unlink()
    looked = as_nobody(lambda: look_at(left))
    assert looked[:5] == [["law"], [1, 2], {"stable": 1}, 2.0, []], looked


@as_root
@pytest.mark.parametrize("with_log", [False, True], ids=["closed", "killed"])
def test_a_bank_on_a_read_only_disk_is_read_and_says_so_when_written(with_log: bool, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=8m") as disk:
        store = GovernedStore(disk / "bank")
        store.put(block("law", 1.0))
        connection = engine._connect(disk / "bank" / "bank.db", "rw")
        if with_log:
            connection.execute("SELECT * FROM journal").fetchone()
        store.put(block("law", 2.0))
        store.tag("law@1", "stable")
        if with_log:
            shutil.copytree(disk / "bank", disk / "left")
        connection.close()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        looked = look_at(disk / ("left" if with_log else "bank"))
        assert looked[:5] == [("law",), [1, 2], {"stable": 1}, 2.0, ()], looked
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        assert store.put(block("law", 3.0)).number == 3


@as_root
def test_a_folder_that_may_not_be_entered_is_named(memory: Path) -> None:
    commit(Bank(memory / "bank"), "law", 1)  # the folder above is its owner's alone
    said = as_nobody(lambda: Bank(memory / "bank").names())
    assert f"StorageError: {memory}/bank" in said and "cannot be reached (Permission denied)" in said


# ------------------------------------------------------------------------------------------------ readers, odd places


def test_a_reader_keeps_what_it_opened_while_the_object_is_replaced_or_deleted(tmp_path: Path) -> None:
    bank = Bank(tmp_path / "bank")
    manifest, weights = made("law", 1)
    bank.commit(manifest, weights)
    file = next((tmp_path / "bank").rglob(manifest.weights))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        bank.objects.delete(manifest.weights)
        assert (mapped[:], opened.read()) == (weights, weights)
        with pytest.raises(CorruptBlock, match="is missing"):
            bank.read("law")
        bank.commit(manifest, weights)  # adds no version and puts the bytes again
        assert mapped[:] == weights
        assert [version.number for version in bank.history("law")] == [1]
    with file.open("r+b") as damaged, mmap.mmap(damaged.fileno(), 0) as mapped:
        mapped[0] = 255
        assert list(findings(bank))
        bank.objects.put(weights)  # replaces the damaged file by another, which the old map does not show
        assert mapped[0] == 255
        assert list(findings(bank)) == []


@pytest.mark.parametrize("name", ["a b", "100%", "50%41", "what?mode=ro", "a#b", "é ☃", "a&b=c;d", "quote'\"", "-x"])
def test_a_bank_may_lie_at_any_path(name: str, memory: Path) -> None:
    bank = Bank(memory / name / "bank")
    commit(bank, "law", 1)
    commit(bank, "law", 2)
    assert contents(bank) == {"law": ((1, 2), {})}
    assert (memory / name / "bank" / "bank.db").is_file()
    assert [entry.name for entry in memory.iterdir()] == [name]
    assert list(findings(bank)) == []


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "bank.db").write_bytes(b"no database, " * 400)
    for question in (Bank(tmp_path).names, lambda: commit(Bank(tmp_path), "law", 1)):
        with pytest.raises(StorageError, match=r"bank\.db refuses: file is not a database; restore it"):
            question()


def test_a_writer_that_waits_too_long_is_told_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0.05)
    bank = Bank(tmp_path / "bank")
    commit(bank, "law", 1)
    other = engine._connect(tmp_path / "bank" / "bank.db", "rw")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="database is locked; another process holds it"):
        commit(bank, "law", 2)
    assert contents(bank) == {"law": ((1,), {})}  # a reader waits for nobody
    other.close()
    commit(bank, "law", 2)
    assert contents(bank) == {"law": ((1, 2), {})}
