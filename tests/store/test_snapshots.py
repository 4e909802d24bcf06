"""Snapshots: a look at the past, and the way back to it, byte for byte."""

import datetime
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmemx.core.errors import (
    AccessDenied,
    ConfigError,
    CorruptBlock,
    IllegalTransition,
    PolicyRefused,
    StorageError,
    UnknownBlock,
)
from pmemx.core.event import Action
from pmemx.core.lifecycle import State
from pmemx.core.tag_policy import Bound, TagPolicy
from pmemx.store import catalogue
from pmemx.store.bank import Bank
from pmemx.store.collector import Collector
from pmemx.store.governed import GovernedStore, load
from pmemx.store.journal import Journal
from pmemx.store.life import Life
from pmemx.store.members import Members, Role
from pmemx.store.snapshots import Snapshots
from tests.store.banks import Hands, fill, opened, put


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
def store(tmp_path: Path, clock: Hands) -> GovernedStore:
    return opened(tmp_path, clock)


def told(bank: Bank) -> dict[str, object]:
    """Everything a bank says of its blocks, down to the bytes of what the latest versions and the tags point at."""
    with bank.ledger.reading() as now:
        lines = catalogue.listing(now)
    told: dict[str, object] = {}
    for line in lines:
        told[line.full_name] = (line.digest, line.state in ("generated", "activated"))
        if line.state != State.EXPIRED:
            tags = {tag: bank.read(f"{line.full_name}@{number}") for tag, number in bank.tags(line.full_name).items()}
            told[line.full_name + " tags"] = {tag: (read[1], read[2]) for tag, read in tags.items()}
            told[line.full_name + " bytes"] = bank.read(line.full_name)[2]
    return told


def test_a_view_shows_the_past_and_leaves_the_bank_untouched(store: GovernedStore, tmp_path: Path) -> None:
    put(store, "law", 1.0)
    store.tag("law", "stable")
    snapshots = Snapshots(store.bank)
    snapshots.take("spring")
    before = told(store.bank)
    put(store, "law", 2.0)
    store.tag("law", "stable")
    put(store, "new", 3.0)
    Life(store.bank).archive("law")
    files = {
        path: path.read_bytes()
        for path in (tmp_path / "bank").rglob("*")
        if path.is_file() and "bank.db" not in path.name
    }
    head = Journal(store.bank).head()
    past = snapshots.view("spring")
    assert told(past) == before
    assert (
        load(past, "law").factors["model.q_proj"].A[0, 0]
        == load(past, "law@stable").factors["model.q_proj"].A[0, 0]
        == 1.0
    )
    assert past.names() == ("law",)
    with pytest.raises(UnknownBlock):
        past.find("new")
    with pytest.raises(UnknownBlock):
        past.find("law@2")
    with pytest.raises(StorageError, match="refuses changes"):
        past.tag("law", "x")
    assert Journal(store.bank).head() == head
    assert {path: path.read_bytes() for path in files} == files


def test_a_restore_brings_bytes_tags_and_states_back(store: GovernedStore) -> None:
    put(store, "law", 1.0)
    put(store, "law", 2.0)
    store.tag("law@1", "stable")
    put(store, "tax", 5.0)
    life, snapshots = Life(store.bank), Snapshots(store.bank)
    life.archive("tax")
    put(store, "same", 6.0)
    taken = snapshots.take("spring")
    before = told(store.bank)
    put(store, "law", 3.0)
    store.tag("law@3", "stable")
    store.tag("law@2", "candidate")
    life.restore("tax")
    put(store, "tax", 7.0)
    put(store, "new", 8.0)
    bad = told(store.bank)
    restored = snapshots.restore("spring", message="undo the bad week")
    after = told(store.bank)
    assert {key: after[key] for key in before} == before
    assert [str(name) for name in restored.changed] == ["shared/law", "shared/tax"]
    assert [str(name) for name in restored.archived] == ["shared/new"]
    assert (store.find("law").number, store.find("law").restores, len(store.history("law"))) == (4, 2, 4)
    (entry,) = Journal(store.bank).entries(action=Action.RESTORE)
    assert entry.detail == {"moment": taken.moment, "message": "undo the bad week", "changed": 2, "archived": 1}
    assert snapshots.restore("spring").changed == ()  # nothing is left to do
    snapshots.restore(entry.seq - 6)  # somewhere in the middle of the restore
    assert store.verify() == ()
    assert bad["law"] != after["law"]


def test_a_restore_can_be_undone_by_another(store: GovernedStore) -> None:
    put(store, "law", 1.0)
    snapshots = Snapshots(store.bank)
    snapshots.take("first")
    put(store, "law", 2.0)
    put(store, "new", 3.0)
    second = told(store.bank)
    snapshots.take("second")
    snapshots.restore("first")
    snapshots.restore("second")
    assert told(store.bank) == second


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from("ptuaryf"), st.sampled_from("abc"), st.integers(1, 4)), max_size=14), st.data()
)
def test_every_moment_can_be_restored(
    tmp_path_factory: pytest.TempPathFactory, steps: list, data: st.DataObject
) -> None:
    store = opened(tmp_path_factory.mktemp("bank"), Hands())
    life = Life(store.bank)
    put(store, "a", 9.0)
    said = {Journal(store.bank).head()[0]: told(store.bank)}
    for verb, name, number in steps:
        try:
            {
                "p": lambda: put(store, name, float(number)),  # noqa: B023
                "t": lambda: store.tag(f"{name}@{number}", "stable"),  # noqa: B023
                "u": lambda: store.bank.untag(name, "stable"),  # noqa: B023
                "a": lambda: life.archive(name),  # noqa: B023
                "r": lambda: life.restore(name),  # noqa: B023
                "y": lambda: store.rollback(name, number),  # noqa: B023
                "f": lambda: life.use(name),  # noqa: B023
            }[verb]()
        except (UnknownBlock, IllegalTransition):
            continue
        said[Journal(store.bank).head()[0]] = told(store.bank)
    moment = data.draw(st.sampled_from(sorted(said)))
    assert told(store.bank.at(moment)) == said[moment]
    Snapshots(store.bank).restore(moment)
    after = told(store.bank)
    assert {key: after[key] for key in said[moment]} == said[moment]
    assert all(after[key][1] is False for key in after.keys() - said[moment].keys() if " " not in key)  # type: ignore[index]
    assert store.verify() == ()


def test_a_restore_refuses_to_change_a_frozen_block_and_then_changes_nothing(store: GovernedStore) -> None:
    put(store, "law", 1.0)
    put(store, "tax", 1.0)
    snapshots, life = Snapshots(store.bank), Life(store.bank)
    snapshots.take("first")
    put(store, "law", 2.0)
    put(store, "tax", 2.0)
    life.freeze("tax")
    head, before = Journal(store.bank).head(), told(store.bank)
    with pytest.raises(IllegalTransition, match="tax is frozen"):
        snapshots.restore("first")
    assert (Journal(store.bank).head(), told(store.bank)) == (head, before)
    life.thaw("tax")
    snapshots.restore("first")
    assert fill(store, "law") == fill(store, "tax") == 1.0


def test_a_block_that_was_frozen_then_is_frozen_again(store: GovernedStore) -> None:
    put(store, "law", 1.0)
    life, snapshots = Life(store.bank), Snapshots(store.bank)
    life.freeze("law")
    snapshots.take("first")
    life.thaw("law")
    put(store, "law", 2.0)
    snapshots.restore("first")
    assert life.state("law") is State.FROZEN
    assert fill(store, "law") == 1.0


def test_a_snapshot_keeps_what_expired_from_the_collector(store: GovernedStore, clock: Hands) -> None:
    life, snapshots = Life(store.bank), Snapshots(store.bank)
    put(store, "law", 1.0)
    snapshots.take("first")
    for name in ("law",):
        life.archive(name)
        life.expire(name)
    assert Collector(store.bank).collect() == ()
    snapshots.restore("first")
    assert fill(store, "law") == 1.0
    life.archive("law")
    life.expire("law")
    snapshots.drop("first")
    moment = Journal(store.bank).head()[0]
    assert len(Collector(store.bank).collect(dry_run=False)) == 2
    clock.turn(days=1)
    with pytest.raises(CorruptBlock, match="was collected"):
        Snapshots(store.bank).restore(1)
    assert Journal(store.bank).entries(action=Action.RESTORE)[0].seq < moment


def test_moments_are_names_entries_and_times(store: GovernedStore, clock: Hands) -> None:
    put(store, "law", 1.0)
    clock.turn(hours=1)
    put(store, "law", 2.0)
    snapshots = Snapshots(store.bank)
    assert snapshots.moment(clock.time - datetime.timedelta(minutes=1)) == 1
    assert snapshots.moment(clock.time) == 2
    assert snapshots.moment(clock.time - datetime.timedelta(days=9)) == 0
    assert store.bank.at(0).names() == ()
    for moment in ("spring", 3, -1):
        with pytest.raises(UnknownBlock):
            snapshots.moment(moment)
    snapshots.take("spring")
    with pytest.raises(ConfigError, match="already"):
        snapshots.take("spring")
    for name in ("", " ", "12", "two\nlines", "\x1b[31m", "\u202etxet"):
        with pytest.raises(ConfigError):
            snapshots.take(name)
    assert [(s.name, s.moment) for s in snapshots.list()] == [("spring", 2)]
    snapshots.drop("spring")
    assert snapshots.list() == ()
    with pytest.raises(UnknownBlock):
        snapshots.drop("spring")


def test_only_an_owner_of_the_bank_takes_and_restores(store: GovernedStore) -> None:
    put(store, "law")
    Members(store.bank).enrol("root", role=Role.OWNER)
    Members(store.bank).enrol("eve", role=Role.EDITOR)
    eve = Snapshots(replace(store.bank, principal="eve"))
    for attempt in (lambda: eve.take("x"), lambda: eve.restore(1), lambda: eve.drop("x")):
        with pytest.raises(AccessDenied):
            attempt()
    assert eve.view(1).names() == ("law",)


def test_a_restore_brings_the_tags_of_an_expired_block_back_in_versions_of_their_own(store: GovernedStore) -> None:
    life, snapshots = Life(store.bank), Snapshots(store.bank)
    put(store, "law", 1.0)
    put(store, "law", 2.0)
    store.tag("law@1", "stable")
    life.use("law")
    snapshots.take("first")
    before = told(store.bank)
    life.archive("law")
    life.expire("law")
    assert Collector(store.bank).collect(dry_run=False) == ()
    assert told(snapshots.view("first")) == before
    snapshots.restore("first")
    assert told(store.bank) == before
    assert (store.tags("law"), store.find("law").number) == ({"stable": 3}, 4)
    assert life.state("law") is State.ACTIVATED
    assert snapshots.restore("first").changed == ()
    assert store.verify() == ()


def test_a_restore_puts_no_tag_on_bytes_that_were_collected(store: GovernedStore) -> None:
    life = Life(store.bank)
    put(store, "law", 1.0)
    put(store, "law", 2.0)
    store.tag("law@1", "stable")
    moment = Journal(store.bank).head()[0]
    life.archive("law")
    life.expire("law")
    Collector(store.bank).collect(dry_run=False)
    put(store, "law", 2.0)
    with pytest.raises(CorruptBlock, match=r"shared/law@1: .* was collected"):
        Snapshots(store.bank).restore(moment)
    assert store.tags("law") == {}


def test_a_restore_to_when_a_block_had_expired_takes_it_out_of_selection(store: GovernedStore) -> None:
    life = Life(store.bank)
    put(store, "law", 1.0)
    life.archive("law")
    life.expire("law")
    moment = Journal(store.bank).head()[0]
    put(store, "law", 2.0)
    restored = Snapshots(store.bank).restore(moment)
    assert [str(name) for name in restored.archived] == ["shared/law"]
    assert life.state("law") is State.ARCHIVED


def test_a_restore_obeys_a_policy_that_was_set_since(store: GovernedStore) -> None:
    put(store, "law", 1.0)
    store.tag("law", "stable")
    moment = Journal(store.bank).head()[0]
    store.bank.untag("law", "stable")
    store.promotions.protect("stable", TagPolicy(bounds=(Bound(metric="lost", at_most=0.1),)))
    with pytest.raises(PolicyRefused, match="lost"):
        Snapshots(store.bank).restore(moment)
    store.promotions.unprotect("stable")
    Snapshots(store.bank).restore(moment)
    assert store.tags("law") == {"stable": 1}


def test_a_view_of_the_past_knows_no_snapshot_of_the_future(store: GovernedStore) -> None:
    put(store, "law", 1.0)
    Snapshots(store.bank).take("first")
    moment = Journal(store.bank).head()[0]
    Snapshots(store.bank).drop("first")
    Snapshots(store.bank).take("second")
    past = Snapshots(store.bank.at(moment))
    assert [snapshot.name for snapshot in past.list()] == ["first"]
    assert Snapshots(store.bank.at(1)).list() == ()
    with pytest.raises(UnknownBlock, match="there are first"):
        past.moment("second")
