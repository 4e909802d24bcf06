"""The journal: its times never decrease, transactions are all or nothing, the past stays as it was, no change goes unseen."""

import getpass
import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, select

from pmemx.core.canonical import canonical_json
from pmemx.core.card import BlockCard, Version
from pmemx.core.errors import (
    AccessDenied,
    ConfigError,
    CorruptBlock,
    IllegalTransition,
    PolicyRefused,
    StorageError,
    UnknownBlock,
)
from pmemx.core.event import GENESIS, Action, Event
from pmemx.core.lifecycle import State, Trigger
from pmemx.store import catalogue, changes, engine, schema
from pmemx.store.bank import Bank
from pmemx.store.journal import Journal
from pmemx.store.ledger import NOW, Transaction, to_event
from pmemx.store.manifest import Manifest
from pmemx.store.references import Name
from pmemx.store.verification import chain, differences, findings, replayed

START = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
LAW = Name("shared", "law")


@dataclass
class Hand:
    """A clock that is turned by hand."""

    time: datetime = START

    def __call__(self) -> datetime:
        return self.time

    def turn(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@pytest.fixture
def hand() -> Hand:
    return Hand()


@pytest.fixture
def bank(tmp_path: Path, hand: Hand) -> Bank:
    return Bank(tmp_path / "bank", principal="ann", clock=hand)


def commit(bank: Bank, name: str = "law", content: bytes = b"weights", **card: Any) -> Version:
    digest = bank.objects.put(content)
    made = replace(BlockCard(name, "domain", "b" * 64, recipe={"content": content.hex()}), **card)
    return bank.commit(Manifest(made, (), digest, len(content)), content)


def move(bank: Bank, to: State, trigger: Trigger, name: Name = LAW) -> None:
    with bank.transaction() as now:
        changes.move(now, name, to, trigger)


def events(bank: Bank) -> list[Event]:
    with bank.ledger.reading() as now:
        query = select(schema.journal).order_by(schema.journal.c.seq)
        return [to_event(row) for row in now.connection.execute(query)]


def head(bank: Bank) -> tuple[int, str]:
    with bank.ledger.reading() as now:
        return now.head


# ------------------------------------------------------------------------------------------------------------------ time


def test_times_never_decrease_when_the_clock_goes_back(bank: Bank, hand: Hand) -> None:
    for step, seconds in enumerate((5, -3600, 0, 1, 7200, -1, -86400 * 400)):
        hand.turn(seconds)
        commit(bank, content=bytes([step]))
    times = [event.at for event in events(bank)]
    assert all(before <= after for before, after in pairwise(times))
    assert [event.seq for event in events(bank)] == list(range(1, 8))
    # 5 s after the start; there the time stands until the clock has come by; then 3601 s later, and there it stands.
    since = [(event.time - START).total_seconds() for event in events(bank)]
    assert since == [5, 5, 5, 5, 3606, 3606, 3606]
    assert list(findings(bank)) == []


def test_a_block_past_its_time_to_live_may_not_be_chosen_and_a_clock_set_back_does_not_revive_it(
    bank: Bank, hand: Hand
) -> None:
    commit(bank, "brief", ttl=10)
    commit(bank, "lasting")
    hand.turn(9.999)
    assert bank.names() == ("brief", "lasting")
    hand.turn(0.001)
    assert bank.names() == ("lasting",)
    commit(bank, "later")
    hand.turn(-3600)
    assert bank.names() == ("lasting", "later")
    assert bank.find("brief").card.ttl == 10  # it is out of the choice, not gone
    assert bank.at(2).names() == ("brief", "lasting")
    assert bank.at(3).names() == ("lasting", "later")


def test_a_frozen_block_is_kept_past_its_time_to_live(bank: Bank, hand: Hand) -> None:
    commit(bank, ttl=10)
    move(bank, State.FROZEN, Trigger.FREEZE)
    hand.turn(20)
    assert bank.names() == ("law",)
    assert bank.find("law").number == 1


def test_an_entry_tells_who_what_when_and_follows_the_one_before(bank: Bank, hand: Hand) -> None:
    made = commit(bank, "law")
    hand.turn(1)
    bank.tag("law", "prod", reason="it passed")
    first, second = events(bank)
    assert (first.principal, first.action, first.namespace, first.name, first.time) == (
        "ann", "commit", "shared", "law", START,
    )  # fmt: skip
    assert (first.detail["digest"], first.detail["number"], first.detail["card"]["name"]) == (made.digest, 1, "law")
    assert second.detail == {"tag": "prod", "number": 1, "reason": "it passed"}
    assert (first.previous, second.previous, second.time) == (GENESIS, first.hash, START + timedelta(seconds=1))
    assert head(bank) == (2, second.hash)


def test_what_changes_nothing_adds_no_entry(bank: Bank) -> None:
    commit(bank)
    bank.tag("law", "prod")
    before = head(bank)
    commit(bank)
    bank.tag("law@1", "prod")
    bank.untag("law", "no such tag")
    bank.rollback("law", 1)
    assert (bank.names(), bank.find("law").number, bank.tags("law")) == (("law",), 1, {"prod": 1})
    assert head(bank) == before


# ---------------------------------------------------------------------------------------------------------- transactions


class Abandoned(Exception):
    """Raised by these tests alone."""


def test_a_transaction_keeps_all_or_nothing(bank: Bank) -> None:
    commit(bank)
    before = head(bank)

    def change_and_fail() -> None:
        with bank.transaction():
            commit(bank, content=b"2")
            bank.tag("law", "prod")
            commit(bank, "tax")
            assert (bank.find("law@prod").number, bank.names()) == (2, ("law", "tax"))  # it sees its own changes
            raise Abandoned

    with pytest.raises(Abandoned):
        change_and_fail()
    assert head(bank) == before
    assert (bank.find("law").number, bank.tags("law"), bank.names()) == (1, {}, ("law",))
    with bank.transaction():
        commit(bank, content=b"2")
        bank.tag("law", "prod")
    assert (bank.tags("law"), head(bank)[0]) == ({"prod": 2}, before[0] + 2)
    assert list(findings(bank)) == []


def test_an_inner_transaction_that_fails_leaves_the_outer_one_whole(bank: Bank) -> None:
    with bank.transaction():
        commit(bank)
        with suppress(Abandoned), bank.transaction():
            commit(bank, "tax")
            with bank.transaction():
                bank.tag("tax", "prod")
            raise Abandoned
        assert bank.names() == ("law",)
        with pytest.raises(UnknownBlock):
            bank.tag("tax", "prod")
        bank.tag("law", "prod")
    assert bank.names() == ("law",)
    assert [event.action for event in events(bank)] == ["commit", "tag"]
    assert list(findings(bank)) == []


def test_two_spellings_of_one_place_share_a_transaction(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(bank.path)
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0.1)
    with bank.transaction():
        commit(bank)
        for spelling in (folder.name, f"../{folder.parent.name}/{folder.name}", folder / ".." / folder.name):
            replace(bank, path=spelling).tag("law", "prod")
    assert bank.tags("law") == {"prod": 1}


def test_a_context_that_was_copied_inside_a_transaction_outlives_it(bank: Bank) -> None:
    with bank.transaction():
        commit(bank)
        copied = copy_context()
    assert copied.run(bank.names) == ("law",)
    copied.run(bank.tag, "law", "prod")
    assert bank.tags("law") == {"prod": 1}


def test_a_copied_context_does_not_lend_a_connection_to_another_thread(bank: Bank) -> None:
    commit(bank)
    with bank.transaction(), ThreadPoolExecutor(1) as pool:
        commit(bank, "tax")
        assert pool.submit(copy_context().run, bank.names).result() == ("law",)
    assert bank.names() == ("law", "tax")


def test_numbers_that_no_database_holds_are_answered_or_refused_by_name(bank: Bank) -> None:
    commit(bank)
    bank.tag("law", "-1")
    journal = Journal(bank)
    assert len(journal.entries(before=2**70, limit=2**70)) == 2 and journal.entries(before=-(2**70)) == ()
    for limit in (0, -1, -(2**70)):
        with pytest.raises(ConfigError, match=f"the limit of a list of entries is {limit}; the least is 1"):
            journal.entries(limit=limit)
    for moment in (2**70, -1):
        with pytest.raises(ConfigError, match="the moment of a bank is an entry of its journal"):
            bank.at(moment)
    for number in (-1, 0, 2**70):
        with pytest.raises(UnknownBlock, match=f"versions 1 to 1 and tags -1, but no '{number}'"):
            bank.rollback("law", number)
    with pytest.raises(ConfigError, match="has no time zone; give one"):
        journal.moment(datetime(2026, 1, 1))


def test_a_user_without_a_name_is_called_by_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", nameless)
    monkeypatch.delenv("PMEMX_PRINCIPAL", raising=False)
    assert Bank(tmp_path).ledger.principal == f"uid-{os.getuid()}"


def test_no_other_reader_sees_an_unfinished_transaction(bank: Bank) -> None:
    commit(bank)
    seen: list[tuple[int, dict[str, int]]] = []

    def look() -> None:
        seen.append((bank.find("law").number, bank.tags("law")))

    with bank.transaction():
        commit(bank, content=b"2")
        bank.tag("law", "prod")
        in_thread(look)
    in_thread(look)
    assert seen == [(1, {}), (2, {"prod": 2})]


def test_transactions_of_two_threads_come_one_after_the_other(bank: Bank) -> None:
    commit(bank)
    barrier = threading.Barrier(2)

    def work(name: str) -> None:
        barrier.wait()
        for step in range(5):
            with bank.transaction():
                commit(bank, content=f"{name} {step}".encode())
                bank.tag("law", name)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    actions = [event.action for event in events(bank)]
    assert actions == ["commit"] + ["commit", "tag"] * 10  # no entry of one thread within a transaction of the other
    assert [version.number for version in bank.history("law")] == list(range(1, 12))
    assert list(findings(bank)) == []


def test_a_reader_sees_one_state_throughout(bank: Bank) -> None:
    commit(bank)
    with bank.ledger.reading() as now:
        before = catalogue.resolve(now, "law").version
        in_thread(lambda: commit(bank, content=b"2"))
        assert catalogue.resolve(now, "law").version == before
    assert bank.find("law").number == 2


def test_a_refusal_is_noted_and_nothing_else_is_kept(bank: Bank) -> None:
    commit(bank)
    begin_to_govern(bank)
    with bank.transaction() as now:
        now.append(Action.ENROL, None, {"principal": "eve", "token": ""})
        now.append(Action.GRANT, None, {"principal": "eve", "role": "reader", "scope": "*"})
    with pytest.raises(AccessDenied, match="'eve' may not write shared/law"):
        replace(bank, principal="eve").tag("law", "prod")
    with suppress(PolicyRefused), bank.transaction():
        bank.tag("law", "prod")
        raise PolicyRefused("the score is below its bound")
    denied, refused = events(bank)[-2:]
    assert (denied.action, denied.principal) == ("denied", "eve")
    assert (refused.action, refused.detail) == ("refused", {"reason": "the score is below its bound"})
    assert bank.tags("law") == {}
    assert list(findings(bank)) == []


def test_whoever_may_not_read_a_block_learns_nothing_of_it(bank: Bank) -> None:
    commit(bank)
    bank.tag("law", "codeword")
    with bank.transaction() as now:
        now.append(Action.ENROL, None, {"principal": "ann", "token": ""})
        now.append(Action.ENROL, None, {"principal": "eve", "token": ""})
    eve = replace(bank, principal="eve")
    assert eve.names() == ()
    for reference in ("law", "law@1", "law@7", "law@codeword", "law@none", "no such block"):
        with pytest.raises(AccessDenied) as caught:
            eve.find(reference)
        assert "codeword" not in str(caught.value).replace(reference, "")
        assert "versions" not in str(caught.value)
    digest = bank_digest(bank)
    with pytest.raises(UnknownBlock, match=f"no version begins with digest {digest}"):  # as of one that is not there
        eve.find(digest)


def bank_digest(bank: Bank) -> str:
    with bank.ledger.reading() as now:
        return now.connection.execute(select(schema.versions.c.digest)).scalar_one()


def test_two_principals_do_not_share_a_transaction(bank: Bank) -> None:
    with pytest.raises(ConfigError, match="'bob' acts inside a transaction of 'ann'"), bank.transaction():
        replace(bank, principal="bob").names()
    assert bank.names() == ()


def in_thread(task: Callable[[], object]) -> None:
    thread = threading.Thread(target=task)
    thread.start()
    thread.join()


# ---------------------------------------------------------------------------------------------------------------- the past


def told(bank: Bank, names: tuple[str, ...]) -> dict[str, object]:
    """All that the verbs of a bank say of some names. How often something was used is of today alone.

    In one transaction, which is quicker, and where a bank of the past answers as such too.
    """
    with replace(bank, moment=NOW).transaction():
        return _told(bank, names)


def _told(bank: Bank, names: tuple[str, ...]) -> dict[str, object]:
    answers: dict[str, object] = {"names": bank.names()}
    with bank.ledger.reading() as now:
        lines = catalogue.listing(now)
        answers["listing"] = [line._replace(uses=0, last_used=0) for line in lines]
        tagged = catalogue.listing(now, where={"tag": "prod"}, states=[State.GENERATED, State.ACTIVATED])
        answers["tagged"] = [line.full_name for line in tagged]
    for name in names:
        for verb in (bank.history, bank.tags):
            answers[f"{verb.__name__} {name}"] = answer(verb, name)
        for which in ("", "@1", "@3", "@best"):
            answers[name + which] = answer(bank.found, name + which)
        answers[f"manifest {name}"] = answer(bank.manifest, name)
        answers[f"state {name}"] = answer(lambda text: facts(bank, text), name)
    return answers


def facts(bank: Bank, name: str) -> object:
    with bank.ledger.reading() as now:
        block = catalogue.block_of(now, bank.full(name))
        digest = catalogue.history_end(now, block).version.digest
        scores = catalogue.scores(now, block, 1)
        return (
            catalogue.state_of(now, block),
            scores,
            catalogue.with_digest(now, digest),
            catalogue.descendants(now, digest),
        )


def answer(verb: Callable[[str], object], text: str) -> object:
    try:
        return verb(text)
    except UnknownBlock as error:
        return str(error)


def test_a_bank_of_the_past_says_what_the_bank_said_then(bank: Bank, hand: Hand) -> None:
    names = ("law", "tax", "team:legal/law")
    said = {0: told(bank, names)}
    for step in varied_steps(bank):
        hand.turn(3)
        step()
        said[head(bank)[0]] = told(bank, names)
    assert len(said) > 30
    assert bank.names()
    for seq, answers in said.items():
        past = told(bank.at(seq), names)
        assert past == answers, f"entry {seq}"


def test_a_bank_of_the_past_refuses_every_change(bank: Bank) -> None:
    commit(bank)
    past = bank.at(1)
    for change in (
        lambda: commit(past, content=b"2"),
        lambda: past.tag("law", "prod"),
        lambda: past.untag("law", "prod"),
        lambda: past.rollback("law", 1),
        lambda: move(past, State.FROZEN, Trigger.FREEZE),
    ):
        with pytest.raises(StorageError, match="as of entry 1 and refuses changes; open the bank itself"):
            change()
    assert head(bank)[0] == 1


# --------------------------------------------------------------------------------------------------------------- tampering


def begin_to_govern(bank: Bank) -> None:
    """Together: once somebody is enrolled, nobody else may do anything."""
    with bank.transaction() as now:
        now.append(Action.ENROL, None, {"principal": bank.principal, "token": ""})
        now.append(Action.GRANT, None, {"principal": bank.principal, "role": "owner", "scope": "*"})


def varied_steps(bank: Bank) -> Iterator[Callable[[], object]]:
    """Changes of every kind, each at least one entry."""
    team = replace(bank, namespace="team:legal")
    other = Name("shared", "tax")

    def append(action: Action, name: Name | None, **detail: object) -> Callable[[], object]:
        def step() -> None:
            with bank.transaction() as now:
                now.append(action, name, detail)

        return step

    score = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10, "clusters": 5, "floor": None, "ceiling": 1.0}
    part = {"namespace": "shared", "name": "law", "number": 2, "weight": 0.5}
    yield lambda: commit(bank, content=b"1", metrics={"exact": 0.5})
    yield lambda: commit(bank, content=b"2", sensitivity="public", ttl=1e6)
    yield lambda: bank.tag("law@1", "prod", reason="the first")
    yield lambda: bank.tag("law@2", "best")
    yield lambda: commit(bank, "tax", b"3", parents=(bank.find("law").digest, bank.find("law@1").digest), ttl=20)
    yield lambda: commit(team, content=b"4")
    yield lambda: bank.tag("law@2", "prod", reason="better")
    yield append(Action.USE, LAW, number=2, count=3, relevance=1.5)
    yield lambda: move(bank, State.ACTIVATED, Trigger.USE)
    yield append(Action.USE, LAW, number=2, count=1, relevance=0.25)
    yield append(Action.EVALUATE, LAW, number=1, scores={"exact": score, "f1": score | {"value": 0.25}})
    yield append(Action.EVALUATE, LAW, number=1, scores={"exact": score | {"value": 0.75}})
    yield lambda: bank.untag("law", "best", reason="it was not")
    yield lambda: bank.rollback("law", 1, message="2 was worse")
    yield lambda: move(bank, State.MERGED, Trigger.MERGE)
    yield lambda: bank.tag("law@3", "best")
    yield lambda: commit(bank, content=b"5")
    yield lambda: move(bank, State.ARCHIVED, Trigger.ARCHIVE, other)
    yield lambda: move(bank, State.EXPIRED, Trigger.EXPIRE, other)
    yield lambda: commit(bank, "tax", b"6")
    yield lambda: move(bank, State.FROZEN, Trigger.FREEZE)
    yield lambda: move(bank, State.GENERATED, Trigger.THAW)
    yield append(Action.PROTECT, None, tag="gold", policy={"exact": [0.5, 1.0]})
    yield append(Action.PROTECT, None, tag="gold", policy={"exact": [0.6, 1.0]})
    yield append(Action.UNPROTECT, None, tag="gold")
    yield append(Action.SNAPSHOT, None, snapshot="before", moment=4)
    yield append(Action.SNAPSHOT, None, snapshot="after", moment=9)
    yield append(Action.DROP, None, snapshot="before")
    yield append(Action.SIGN, LAW, digest="d" * 64, key="k" * 64, bundle="{}")
    yield append(Action.ANSWER, None, id="a" * 64, answer="42", parts=[part, part | {"name": "tax", "number": 1}])
    yield append(Action.SUBSCRIBE, LAW, source="/elsewhere", reference="law@prod")
    yield append(Action.UNSUBSCRIBE, LAW)
    yield append(Action.SUBSCRIBE, LAW, source="/elsewhere", reference="law")
    yield append(Action.READ, LAW, number=2)
    yield lambda: begin_to_govern(bank)
    yield append(Action.ENROL, None, principal="bob", token="t" * 64)
    yield append(Action.GRANT, None, principal="bob", role="reader", scope="team:legal")
    yield append(Action.WITHDRAW, None, principal="bob", role="reader", scope="team:legal")
    yield append(Action.GRANT, None, principal="bob", role="editor", scope="shared/law")
    yield append(Action.REVOKE, None, principal="bob")
    yield append(Action.EXPORT, LAW, number=1, target="peft")


@pytest.fixture(scope="module")
def rich_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    hand = Hand()
    bank = Bank(tmp_path_factory.mktemp("rich"), principal="ann", clock=hand)
    for step in varied_steps(bank):
        hand.turn(3)
        step()
    assert list(findings(bank)) == []
    assert len(events(bank)) >= 40
    return Path(bank.path)


@pytest.fixture
def rich(rich_folder: Path, tmp_path: Path, hand: Hand) -> Bank:
    """A bank of its own to every test, with more than forty entries of every kind."""
    hand.turn(3600)
    return Bank(shutil.copytree(rich_folder, tmp_path / "rich"), principal="ann", clock=hand)


@contextmanager
def intrusion(bank: Bank) -> Iterator[Connection]:
    """A connection to write any table of the ledger by; everything that asks the bank meanwhile reads through it."""
    with bank.transaction() as now:
        now.connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        yield now.connection


@contextmanager
def undone(intruder: Connection) -> Iterator[None]:
    """What is written inside is taken back at the end."""
    point = intruder.begin_nested()
    yield
    point.rollback()


def write(intruder: Connection, statement: str, *values: object) -> None:
    intruder.exec_driver_sql(statement, values)


COLUMNS = tuple(column.name for column in schema.journal.columns)


def edited(column: str, value: Any) -> list[Any]:
    """Other values that a column may be given."""
    if column == "seq":
        return [-value]
    if column == "at":
        return [value + 1, value - 1]
    if column in ("previous", "hash"):
        return [("0" if value[0] != "0" else "1") + value[1:]]
    if column == "detail":
        return [canonical_json(json.loads(value) | {"more": 1}), value + " "]
    return [value + "x"]


def test_every_edit_of_every_column_of_every_entry_is_noticed(rich: Bank) -> None:
    count, entries = 0, len(events(rich))
    with intrusion(rich) as intruder:
        for row in intruder.execute(select(schema.journal)).all():
            for column, value in zip(COLUMNS, row, strict=True):
                for other in edited(column, value):
                    assert_noticed(intruder, row.seq, column, other)
                    count += 1
        assert chain(intruder) == ()
    assert entries >= 40
    assert count == 11 * entries


def test_an_entry_that_was_edited_together_with_its_hash_no_longer_leads_to_the_next(rich: Bank) -> None:
    held = events(rich)
    with intrusion(rich) as intruder:
        for event in held:
            forged = replace(event, principal="eve")
            with undone(intruder):
                change = "UPDATE journal SET principal = ?, hash = ? WHERE seq = ?"
                write(intruder, change, forged.principal, forged.hash, event.seq)
                (finding,) = chain(intruder, head=held[-1].hash)
                if event is held[-1]:  # what nothing follows, a head alone can tell
                    assert "entries were removed or replaced" in finding
                else:
                    assert f"entry {event.seq + 1} does not follow the one before it" in finding


ODD = {
    "seq": [0, -7, 2000, 2**62],
    "at": ["soon", b"\x00", -1, 2**62, 1.5],
    "detail": ["", "{", "null", "[]", "3", "NaN", "[" * 5000, '{"a":' * 5000, b"{}", '{"a": 1}', '{"a":1,"a":1}'],
    "principal": [b"ann", "", "ANN", 7, "ann\x00"],
    "action": ["", "commit ", b"tag", "no such action"],
    "namespace": ["", "team:legal", b"shared"],
    "name": ["", "tax", b"law", "l\u0430w"],
    "previous": ["", GENESIS, b"0", "x" * 64],
    "hash": ["", GENESIS, b"0", "x" * 64],
}


@pytest.mark.parametrize("column", ODD)
def test_an_edit_to_a_value_that_no_bank_writes_is_noticed_and_crashes_nothing(column: str, rich: Bank) -> None:
    with intrusion(rich) as intruder:
        for other in ODD[column]:
            assert_noticed(intruder, 2, column, other)


def assert_noticed(intruder: Connection, seq: int, column: str, value: object) -> None:
    with undone(intruder):
        write(intruder, f"UPDATE journal SET {column} = ? WHERE seq = ?", value, seq)
        (finding,) = chain(intruder)
        assert finding.startswith("journal: entry "), (seq, column, value)


def test_an_edit_is_named_by_its_entry_and_the_remedy(rich: Bank) -> None:
    with intrusion(rich) as intruder, undone(intruder):
        write(intruder, "UPDATE journal SET principal = 'eve' WHERE seq = 17")
        assert list(findings(rich)) == [
            "journal: entry 17 was edited: it does not have its hash; restore the ledger from a copy of the bank"
        ]
    assert list(findings(rich)) == []


def test_an_edit_by_another_program_is_noticed_by_the_next_reader(rich: Bank) -> None:
    with closing(sqlite3.connect(Path(rich.path) / "bank.db")) as other:
        other.execute("UPDATE journal SET at = at + 1 WHERE seq = 3")
        other.commit()
    assert list(findings(rich)) == [
        "journal: entry 3 was edited: it does not have its hash; restore the ledger from a copy of the bank"
    ]


def shifted(intruder: Connection, above: int, by: int) -> None:
    """Renumber the entries above one."""
    write(intruder, "UPDATE journal SET seq = -(seq + ?) WHERE seq > ?", by, above)
    write(intruder, "UPDATE journal SET seq = -seq WHERE seq < 0")


def swap(intruder: Connection, one: int, other: int, columns: tuple[str, ...]) -> None:
    read = f"SELECT {', '.join(columns)} FROM journal WHERE seq = ?"
    first, second = (intruder.exec_driver_sql(read, (seq,)).one() for seq in (one, other))
    change = f"UPDATE journal SET {', '.join(f'{column} = ?' for column in columns)} WHERE seq = ?"
    write(intruder, change, *first, other)
    write(intruder, change, *second, one)


def test_every_removal_swap_and_duplicate_of_an_entry_is_noticed(rich: Bank) -> None:
    noted, entries = head(rich)[1], len(events(rich))
    everything = tuple(column for column in COLUMNS if column != "seq")
    content = tuple(column for column in everything if column not in ("previous", "hash"))
    copy = ", ".join(everything)
    noticed: list[str] = []
    with intrusion(rich) as intruder:

        def check() -> None:
            noticed.extend(chain(intruder, head=noted))

        for seq in range(1, entries + 1):
            with undone(intruder):
                write(intruder, "DELETE FROM journal WHERE seq = ?", seq)
                check()
                shifted(intruder, seq, -1)
                check()
            with undone(intruder):
                shifted(intruder, seq, 1)
                write(intruder, f"INSERT INTO journal SELECT seq + 1, {copy} FROM journal WHERE seq = ?", seq)
                check()
            with undone(intruder):
                write(intruder, f"INSERT INTO journal SELECT ?, {copy} FROM journal WHERE seq = ?", entries + 1, seq)
                check()
            for columns in (everything, content) if seq < entries else ():
                with undone(intruder):
                    swap(intruder, seq, seq + 1, columns)
                    check()
        assert chain(intruder, head=noted) == ()
    assert len(noticed) == 4 * entries + 2 * (entries - 1)


def test_every_edit_and_removal_of_every_row_of_every_table_is_noticed(rich: Bank) -> None:
    count = 0
    with intrusion(rich) as intruder, replayed(events(rich)) as expected:
        assert list(differences(expected, intruder)) == []
        for table in schema.PROJECTED:
            names = table.columns.keys()
            held = intruder.execute(select(table)).all()
            assert held, f"no row of {table.name} is under test"
            where = " AND ".join(f"{name} IS ?" for name in names)
            for row in held:
                for forged in (None, *one_changed(tuple(row))):
                    with undone(intruder):
                        write(intruder, f"DELETE FROM {table.name} WHERE {where}", *row)
                        if forged:
                            places = ",".join("?" * len(names))
                            write(intruder, f"INSERT OR REPLACE INTO {table.name} VALUES ({places})", *forged)
                        (finding,) = differences(expected, intruder)
                        assert finding.startswith(f"table {table.name}: "), forged
                        count += 1
        assert list(differences(expected, intruder)) == []
    assert count > 400


def one_changed(row: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """The row with each of its values changed in turn."""
    for at, value in enumerate(row):
        changed = 7 if value is None else value + "x" if isinstance(value, str) else value + 1
        yield (*row[:at], changed, *row[at + 1 :])


@pytest.mark.parametrize("table", [table.name for table in schema.PROJECTED])
def test_a_lost_row_of_any_table_is_a_finding_of_the_bank(table: str, rich: Bank) -> None:
    with intrusion(rich) as intruder, undone(intruder):
        read = f"SELECT * FROM {table} ORDER BY 1 DESC LIMIT 1"  # not of ann, who must stay allowed to ask
        row = intruder.exec_driver_sql(read).one()
        matches = " AND ".join(f"{name} IS ?" for name in row._fields)
        write(intruder, f"DELETE FROM {table} WHERE {matches}", *row)
        first, *_ = findings(rich)
        assert first.startswith(
            f"table {table}: 0 rows that the journal does not tell of and 1 that it tells of and are gone"
        )
        assert first.endswith("rebuild the tables from the journal (pmemx bank rebuild)")


def test_a_row_that_the_journal_does_not_tell_of_is_noticed(rich: Bank) -> None:
    with intrusion(rich) as intruder, undone(intruder):
        write(intruder, "INSERT INTO grants VALUES ('ann', 'owner', 'shared', 3, ?)", schema.NEVER)
        (finding,) = findings(rich)
        assert finding.startswith("table grants: 1 rows that the journal does not tell of and 0 that it tells of")
        assert "principal='ann', role='owner', scope='shared', since=3 for one" in finding


def test_a_journal_cut_short_is_noticed_where_its_head_was_noted_and_nowhere_else(rich: Bank) -> None:
    noted = {0: GENESIS} | {event.seq: event.hash for event in events(rich)}
    last = max(noted)
    with intrusion(rich) as intruder:
        for kept in range(last):
            with undone(intruder):
                write(intruder, "DELETE FROM journal WHERE seq > ?", kept)
                (finding,) = chain(intruder, head=noted[last])
                assert f"no entry has the hash {noted[last][:12]} that was noted" in finding
                assert chain(intruder, head=noted[kept]) == ()
                assert chain(intruder) == ()  # without a head a shorter chain is as good as any
                # Unless the tables were cut as well, they tell of more than the journal.
                assert kept % 10 or list(findings(rich))
        assert all(chain(intruder, head=hash) == () for hash in noted.values())  # a head noted earlier is still there


def rechained(intruder: Connection, change: Callable[[list[Event]], list[Event]]) -> None:
    """Write the whole journal anew, with every hash right, and make the tables by a replay where one is possible."""
    forged = change([to_event(row) for row in intruder.execute(select(schema.journal).order_by(schema.journal.c.seq))])
    for table in ("journal", *(table.name for table in reversed(schema.PROJECTED))):
        write(intruder, f"DELETE FROM {table}")
    previous, chained = GENESIS, []
    for seq, event in enumerate(forged, start=1):
        chained.append(replace(event, seq=seq, previous=previous))
        previous = chained[-1].hash
    for event in chained:
        values = (event.seq, event.at, event.principal, event.action, event.namespace, event.name)
        entry = (*values, canonical_json(event.detail), event.previous, event.hash)
        write(intruder, "INSERT INTO journal VALUES (?,?,?,?,?,?,?,?,?)", *entry)
    with suppress(CorruptBlock), replayed(chained) as made:
        for table in schema.PROJECTED:
            for row in made.execute(select(table)).all():
                write(intruder, f"INSERT INTO {table.name} VALUES ({','.join('?' * len(row))})", *row)


FORGERIES: dict[str, Callable[[list[Event]], list[Event]]] = {
    "another name on an entry": lambda held: [*held[:-1], replace(held[-1], principal="eve")],
    "an entry less": lambda held: held[:-1],
    "an entry more in between": lambda held: [*held[:-1], replace(held[-2], principal="eve"), held[-1]],
    "two entries swapped": lambda held: [*held[:-3], held[-2], held[-3], held[-1]],
    "another time": lambda held: [replace(event, at=event.at + 1) for event in held],
    "nothing at all": lambda held: [],
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_chain_that_was_made_anew_is_noticed_only_by_whoever_noted_its_head(forgery: str, rich: Bank) -> None:
    noted = head(rich)[1]
    with intrusion(rich) as intruder, undone(intruder):
        rechained(intruder, FORGERIES[forgery])
        # A forger who makes the hashes and the tables anew leaves a sound bank. That is why a head must be noted, or
        # signed, outside the bank.
        assert list(findings(rich)) == []
        (finding,) = findings(rich, head=noted)
        assert "entries were removed or replaced" in finding
    assert list(findings(rich, head=noted)) == []


def test_an_entry_that_somebody_appended_by_the_rules_is_an_entry_as_any_other(rich: Bank) -> None:
    noted = head(rich)[1]
    with intrusion(rich) as intruder, undone(intruder):
        rechained(intruder, lambda held: [*held, replace(held[-1], principal="eve")])
        assert list(findings(rich, head=noted)) == []


UNREPLAYABLE: dict[str, Callable[[Event], Event]] = {
    "no detail": lambda first: replace(first, detail={}),
    "no card": lambda first: altered(first, card=3),
    "a list for a number": lambda first: altered(first, number=[1]),
    "a huge number": lambda first: altered(first, size=10**30),
    "text for a time": lambda first: altered(first, card={**first.detail["card"], "ttl": "soon"}),
    "nothing where a value is needed": lambda first: altered(first, digest=None),
    "a tag before its block": lambda first: replace(first, action="tag", detail={"tag": "prod", "number": 1}),
}


def altered(event: Event, **detail: object) -> Event:
    return replace(event, detail={**event.detail, **detail})


@pytest.mark.parametrize("forgery", UNREPLAYABLE)
def test_a_chain_made_anew_that_no_bank_would_write_is_a_finding_and_no_crash(forgery: str, bank: Bank) -> None:
    commit(bank)
    with intrusion(bank) as intruder, undone(intruder):
        rechained(intruder, lambda held: [UNREPLAYABLE[forgery](held[0]), *held])
        (finding,) = findings(bank)
        assert finding.startswith("journal: entry 1 cannot be replayed")
        assert "restore the ledger from a copy of the bank" in finding


def test_the_detail_of_an_entry_is_what_a_replay_reads(bank: Bank) -> None:
    with bank.transaction() as now:
        event = now.append(Action.PULL, None, {"id": "a" * 64, "tuple": (1, 2.5, None), "☃": "é"})
        assert isinstance(now, Transaction)
    assert event.detail == {"id": "a" * 64, "tuple": [1, 2.5, None], "☃": "é"}
    assert events(bank) == [event]
    assert list(findings(bank)) == []


def test_a_frozen_block_refuses_versions_and_tags_and_says_how_to_change_that(bank: Bank) -> None:
    commit(bank)
    commit(bank, content=b"2")
    bank.tag("law@1", "prod")
    move(bank, State.FROZEN, Trigger.FREEZE)
    before = head(bank)
    for change in (
        lambda: commit(bank, content=b"3"),
        lambda: bank.tag("law", "prod"),
        lambda: bank.untag("law", "prod"),
        lambda: bank.rollback("law", 1),
        lambda: move(bank, State.ARCHIVED, Trigger.ARCHIVE),
        lambda: move(bank, State.MERGED, Trigger.MERGE),
    ):
        with pytest.raises(IllegalTransition, match=r"shared/law is frozen.*thaw it first"):
            change()
    assert head(bank) == before
    assert commit(bank, content=b"2").number == 2  # what it holds already is no change


def test_a_view_of_the_past_has_the_head_and_the_times_of_then(bank: Bank, hand: Hand) -> None:
    commit(bank, content=b"1")
    before = Journal(bank).head()
    hand.turn(60)
    commit(bank, content=b"2")
    past = Journal(bank.at(1))
    assert past.head() == before != Journal(bank).head()
    assert (past.moment(hand.time), Journal(bank).moment(hand.time)) == (1, 2)
