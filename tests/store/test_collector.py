"""The collector deletes what is expired and unreferenced, and never anything else."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pmemx.core.errors import AccessDenied
from pmemx.core.event import Action
from pmemx.store.collector import EXPIRED, UNFINISHED, UNNAMED, Collector
from pmemx.store.governed import GovernedStore
from pmemx.store.journal import Journal
from pmemx.store.life import Life
from pmemx.store.members import Members, Role
from tests.store.banks import Hands, fill, opened, put


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
def store(tmp_path: Path, clock: Hands) -> GovernedStore:
    return opened(tmp_path, clock)


def objects(store: GovernedStore) -> set[str]:
    return {item.sha256 for item in store.bank.objects.listing()}


def age(store: GovernedStore, clock: Hands, *, days: float) -> None:
    """Make every file as old as the clock says."""
    stamp = clock.time.timestamp() - days * 86_400
    for path in Path(store.path).rglob("*"):
        if path.is_file():
            os.utime(path, (stamp, stamp))


def test_only_what_is_expired_and_unreferenced_goes(store: GovernedStore, clock: Hands) -> None:
    life = Life(store.bank)
    for number, name in enumerate(("live", "archived", "frozen", "merged", "gone")):
        put(store, name, float(number))
        put(store, name, float(number) + 100.0)
    put(store, "twin of gone", 4.0)  # the weights of gone@1 under another card
    put(store, "sum", 50.0, parents=(store.find("merged").digest, store.find("gone").digest))
    life.merge(["merged"], "sum")
    life.freeze("frozen")
    life.archive("archived")
    life.archive("gone")
    age(store, clock, days=400)
    assert Collector(store.bank).collect() == ()
    life.expire("gone")
    before = objects(store)
    twin = store.bank.found("twin of gone").weights
    planned = Collector(store.bank).collect()
    assert objects(store) == before
    done = Collector(store.bank).collect(dry_run=False)
    assert done == planned
    assert {item.reason for item in done} == {EXPIRED}
    assert objects(store) == before - {item.name for item in done}
    assert len(done) == 3  # two manifests, and the weights that no twin has
    assert twin in objects(store)
    assert store.verify() == ()
    for number, name in enumerate(("live", "archived", "frozen", "merged")):
        assert (fill(store, f"{name}@1"), fill(store, name)) == (float(number), number + 100.0)
    (entry,) = Journal(store.bank).entries(action=Action.COLLECT)
    assert [row[0] for row in entry.detail["objects"]] == [item.name for item in done]
    assert Collector(store.bank).collect(dry_run=False) == ()


def test_what_crashed_writers_left_goes_after_the_grace(store: GovernedStore, clock: Hands) -> None:
    put(store, "law")
    orphan = store.bank.objects.put(b"weights without a version")
    folder = next((Path(store.path) / "blobs" / "sha256").iterdir())
    (folder / f".{'a' * 64}.0123456789ab.tmp").write_bytes(b"half")
    age(store, clock, days=0.5)
    assert Collector(store.bank).collect(dry_run=False) == ()
    assert {i.reason for i in Collector(store.bank, grace=3600).collect()} == {UNNAMED, UNFINISHED}
    clock.turn(days=1)
    done = Collector(store.bank).collect(dry_run=False)
    assert {item.reason for item in done} == {UNNAMED, UNFINISHED}
    assert orphan not in objects(store)
    assert list(folder.glob(".*")) == []
    assert fill(store, "law") == 1.0
    assert store.verify() == ()


def test_a_commit_puts_again_what_the_collector_took_in_between(
    store: GovernedStore, clock: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "law", 1.0)
    collected = []
    clock.turn(days=3000)  # everything is old

    class Slow(type(store.bank.ledger)):  # type: ignore[misc]
        """A ledger whose writer waits while a collector runs."""

        def writing(self):  # type: ignore[no-untyped-def]
            if not collected:
                collected.append(None)
                collected.extend(Collector(other.bank).collect(dry_run=False))
            return super().writing()

    other = replace(store)
    ledger = store.bank.ledger
    slow = Slow(ledger.location, ledger.principal, ledger.token, ledger.clock)
    monkeypatch.setitem(store.bank.__dict__, "ledger", slow)
    put(store, "tax", 2.0)
    assert len(collected) == 3  # the two objects that waited to be committed
    assert fill(store, "tax") == 2.0
    assert store.verify() == ()


def test_collecting_asks_delete_on_the_whole_bank(store: GovernedStore) -> None:
    put(store, "law")
    Members(store.bank).enrol("root", role=Role.OWNER)
    Members(store.bank).enrol("eve", role=Role.OWNER, scope="shared")
    with pytest.raises(AccessDenied, match="delete the bank"):
        Collector(replace(store.bank, principal="eve")).collect(dry_run=False)
