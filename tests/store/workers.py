"""What the child processes of the fault tests do to a bank; imports neither torch nor pytest, so that a fork is quick."""

import hashlib
import json
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

from pmemx.core.card import BlockCard, Version
from pmemx.core.errors import CorruptBlock, Diverged, PmemxError
from pmemx.store import changes
from pmemx.store.bank import Bank
from pmemx.store.catalogue import resolve
from pmemx.store.engine import server_engine
from pmemx.store.manifest import Manifest, Site
from pmemx.store.references import Name
from pmemx.store.verification import findings


def made(name: str, number: int, size: int = 4096) -> tuple[Manifest, bytes]:
    """A block whose card tells the number that its weights are filled with."""
    weights = number.to_bytes(8, "big") * (size // 8)
    card = BlockCard(name, "domain", "b" * 64, extra={"number": number})
    return Manifest(card, (Site("q_proj", 1, 4, 4, 1.0),), hashlib.sha256(weights).hexdigest(), len(weights)), weights


def number_in(manifest: Manifest, weights: bytes) -> int:
    """The number of a block that `made` made. Raises AssertionError where card and weights tell two."""
    number = manifest.card.extra["number"]
    assert weights == number.to_bytes(8, "big") * (len(weights) // 8), f"the weights are not those of number {number}"
    return number


# ------------------------------------------------------------------------------------------------------- ways to write


@dataclass(frozen=True)
class Way:
    """How a writer commits, and how it joins several verbs into one."""

    commit: Callable[[Bank, str, int], None]
    together: Callable[[Bank], AbstractContextManager[Any]]


def commit(bank: Bank, name: str, number: int) -> None:
    manifest, weights = made(name, number)
    bank.commit(manifest, weights)


def commit_ledger_first(bank: Bank, name: str, number: int) -> None:
    """A planted fault: the ledger speaks of objects that are not there yet."""
    manifest, weights = made(name, number)
    with bank.ledger.writing() as now:
        changes.commit(now, Name(bank.namespace, name), manifest)
    for data in (weights, manifest.encode()):
        bank.objects.put(data)


@dataclass(frozen=True)
class Apart(AbstractContextManager["Apart"]):
    """A planted fault: verbs that belong together, each in a transaction of its own."""

    bank: Bank

    def __exit__(self, *error: object) -> None:
        return


SOUND = Way(commit, Bank.transaction)
LEDGER_FIRST = Way(commit_ledger_first, Bank.transaction)
NOT_TOGETHER = Way(commit, Apart)


# ------------------------------------------------------------------------------------------------------------- programs


def script(bank: Bank, way: Way) -> Iterator[Callable[[], object]]:
    """Every kind of write, each a step that happens whole or not at all."""

    def pair() -> None:
        with way.together(bank):
            way.commit(bank, "left", 7)
            way.commit(bank, "right", 7)

    yield lambda: way.commit(bank, "law", 1)
    yield lambda: way.commit(bank, "law", 2)
    yield lambda: bank.tag("law@1", "stable")
    yield lambda: bank.rollback("law", 1)
    yield pair


def endless(bank: Bank, way: Way) -> Iterator[Callable[[], object]]:
    """Steps without end, each of which adds a version to two blocks and moves a tag of one."""
    start = len(bank.history("law")) if "law" in bank.names() else 0

    def step(number: int) -> None:
        with way.together(bank):
            way.commit(bank, "law", number)
            way.commit(bank, "twin", number)
            bank.tag(f"law@{number}", "newest")

    for number in count(start + 1):
        yield lambda number=number: step(number)


Program = Callable[[Bank, Way], Iterator[Callable[[], object]]]


def perform(line: socket.socket, bank: Bank, program: Program, way: Way) -> None:
    """Do every step and report it; an error ends it, reported.

    Reports go by sendto, which is none of the calls that a test injects faults into.
    """
    for step in program(bank, way):
        try:
            step()
        except PmemxError as error:
            line.sendall(json.dumps([type(error).__name__, str(error)]).encode() + b"\n")
            return
        line.sendall(b'"done"\n')
    line.sendall(b'"end"\n')


def commit_one(line: socket.socket, bank: Bank, name: str) -> None:
    """Commit one block."""
    commit(bank, name, 1)
    line.sendall(b'"end"\n')


# ----------------------------------------------------------------------------------------------------- many at one bank


PATIENCE = 3600
"""Seconds without a report after which a child counts as stuck: no machine is that slow."""

KINDS = ("increment", "commit", "tag", "rollback", "transaction")


def write_for(line: socket.socket, bank: Bank, me: int, seconds: float) -> None:
    """Do writes at random for that long, and until each kind was done; report how many of each."""
    draw, done, end = random.Random(me), Counter[str](), time.monotonic() + seconds
    own = f"own {me}"
    commit(bank, own, 1)
    while time.monotonic() < end or not all(done[kind] for kind in KINDS):
        kind = draw.choice(("increment", *KINDS))
        try:
            _write(bank, kind, own, draw)
            done[kind] += 1
        except Diverged:
            done["lost the race"] += 1
    line.sendall(json.dumps(done).encode() + b"\n")


def _write(bank: Bank, kind: str, own: str, draw: random.Random) -> None:
    if kind == "increment":
        found, manifest, weights = bank.read("counter")
        bank.commit(*made("counter", number_in(manifest, weights) + 1), after=found.version.number)
    elif kind == "commit":
        commit(bank, own, draw.randrange(1 << 30))
    elif kind == "tag":
        bank.tag(f"{own}@{draw.randint(1, len(bank.history(own)))}", "stable")
    elif kind == "rollback":
        bank.rollback(own, draw.randint(1, len(bank.history(own))))
    else:
        with bank.transaction():
            number = bank.find("left").number + 1
            commit(bank, "left", number)
            commit(bank, "right", number)


def read_for(line: socket.socket, bank: Bank, seconds: float) -> None:
    """Read at random for that long, check that what is seen is of one state, and report how many looks there were."""
    done, end, last = Counter[str](), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        found, manifest, weights = bank.read("counter")
        assert number_in(manifest, weights) == found.version.number >= last
        last = found.version.number
        numbers = [version.number for version in bank.history("counter")]
        assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= last
        with bank.ledger.reading() as now:
            assert resolve(now, "left").version.number == resolve(now, "right").version.number
        assert {"counter", "left", "right"} <= set(bank.names())
        done["look"] += 1
    line.sendall(json.dumps(done).encode() + b"\n")


# ------------------------------------------------------------------------------------------------------------ processes


class Child:
    """A process that runs task(line, *arguments), whose reports it keeps: lines of JSON.

    It is forked from a process that did nothing but import this module and write one bank, so it starts in milliseconds.
    """

    def __init__(self, task: Callable[..., None], *arguments: Any) -> None:
        self._line, theirs = socket.socketpair()
        self._line.settimeout(PATIENCE)
        with theirs:
            socket.send_fds(_nursery(), [pickle.dumps((task, arguments))], [theirs.fileno()])
        self._reports = self._line.makefile("rb")
        self.pid: int = self.report()
        assert self.pid, "the child did not start"

    def go(self) -> None:
        """Let it begin."""
        self._line.sendall(b"!")

    def kill(self) -> None:
        """kill -9."""
        os.kill(self.pid, signal.SIGKILL)

    def report(self) -> Any:
        """The next report; None when it is dead."""
        try:
            line = self._reports.readline()
        except ConnectionResetError:
            return None
        return json.loads(line) if line.endswith(b"\n") else None

    def finish(self) -> tuple[int, Any]:
        """Steps that were reported as done, and the last word: "end", an error as [class, message], or None for a death."""
        done = 0
        while (report := self.report()) == "done":
            done += 1
        self._reports.close()
        self._line.close()
        return done, report


@cache
def _nursery() -> socket.socket:
    """A line to the process that children are forked from; it ends when this process does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        program = f"from tests.store.workers import fork_on_request; fork_on_request({theirs.fileno()})"
        root = Path(__file__).parents[2]
        subprocess.Popen(
            [sys.executable, "-c", program], cwd=root, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
        )
    return ours


def fork_on_request(handle: int) -> None:
    """Fork a child for every request, until nobody is left to ask."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead are not waited for
    # What a bank imports late, each child would have to import anew.
    server_engine("postgresql+psycopg://")
    with tempfile.TemporaryDirectory() as folder:
        for step in script(Bank(folder), SOUND):
            step()
    with socket.socket(fileno=handle) as requests:
        while True:
            request, handles, _, _ = socket.recv_fds(requests, 1 << 20, 1)
            if not request:
                return
            if os.fork() == 0:
                requests.close()
                _live(request, handles[0])
            os.close(handles[0])


def _live(request: bytes, handle: int) -> NoReturn:
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        task, arguments = pickle.loads(request)
        with socket.socket(fileno=handle) as line:
            line.sendall(f"{os.getpid()}\n".encode())
            line.recv(1)
            try:
                task(line, *arguments)
                status = 0
            finally:
                if status:
                    line.sendall(json.dumps(["a mistake of the test", traceback.format_exc()]).encode() + b"\n")
    finally:
        os._exit(status)


# ------------------------------------------------------------------------------------------------------------- the look


Contents = dict[str, tuple[tuple[int, ...], dict[str, int]]]
"""By block: the numbers that its versions hold, oldest first, and its tags."""


def contents(bank: Bank) -> Contents:
    """What a bank holds. Reads every byte; raises CorruptBlock."""

    def number(version: Version) -> int:
        manifest = Manifest.decode(bank.objects.get(version.digest))
        return number_in(manifest, bank.objects.get(manifest.weights))

    return {name: (tuple(number(v) for v in bank.history(name)), bank.tags(name)) for name in bank.names()}


def faults(bank: Bank, expected: Sequence[Contents]) -> list[str]:
    """What is wrong with a bank that should hold one of these. It is written once more, a block whose name begins "after"."""
    try:
        found = contents(bank)
    except CorruptBlock as error:
        return [str(error)]
    found = {name: held for name, held in found.items() if not name.startswith("after ")}
    if found not in expected:
        return [f"it holds {found}, which is none of {expected}"]
    name = f"after {uuid.uuid4().hex}"
    commit(bank, name, 9)
    _, manifest, weights = bank.read(name)
    assert number_in(manifest, weights) == 9
    return list(findings(bank))


def examine(line: socket.socket, bank: Bank, expected: Sequence[Contents]) -> None:
    """Report the faults of a bank, in a process that has never seen it."""
    line.sendall(json.dumps(faults(bank, expected)).encode() + b"\n")
