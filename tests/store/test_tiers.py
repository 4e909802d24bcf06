"""Two tiers: what is archived lies in the cold place, what may be chosen in the warm one, and nothing is ever in neither."""

from pathlib import Path

import pytest

from pmemx.core.errors import ConfigError, StorageError
from pmemx.store.collector import Collector
from pmemx.store.governed import GovernedStore
from pmemx.store.life import Life
from pmemx.store.local_objects import LocalObjects
from pmemx.store.tiered_objects import TieredObjects
from pmemx.store.tiers import settle
from tests.store.banks import Hands, fill, opened, put


@pytest.fixture
def store(tmp_path: Path) -> GovernedStore:
    return GovernedStore(tmp_path / "bank", principal="root", clock=Hands(), cold=tmp_path / "cold")


def held(place: Path) -> set[str]:
    return {item.sha256 for item in LocalObjects(place).listing()}


def test_archived_weights_go_cold_and_come_back(store: GovernedStore, tmp_path: Path) -> None:
    life = Life(store.bank)
    for number in range(8):
        put(store, f"expert {number}", float(number))
    weights = [store.bank.found(f"expert {number}").weights for number in range(8)]
    put(store, "twin", 3.0)  # the weights of expert 3
    for number in (1, 3, 5):
        life.archive(f"expert {number}")
    moved = settle(store.bank)
    assert set(moved.cooled) == {weights[1], weights[5]}
    assert held(tmp_path / "cold") == {weights[1], weights[5]}
    assert held(tmp_path / "bank").isdisjoint(moved.cooled)
    assert [fill(store, f"expert {number}") for number in range(8)] == [float(number) for number in range(8)]
    assert settle(store.bank).cooled == ()
    life.restore("expert 5")
    assert settle(store.bank).warmed == (weights[5],)
    assert held(tmp_path / "cold") == {weights[1]}
    life.expire("expert 1")
    assert {item.name for item in Collector(store.bank).collect(dry_run=False)} >= {weights[1]}
    assert held(tmp_path / "cold") == set()
    assert store.verify() == ()


def test_a_move_that_fails_leaves_every_object_readable(
    store: GovernedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        put(store, f"expert {number}", float(number))
        Life(store.bank).archive(f"expert {number}")

    def refuse(self: LocalObjects, sha256: str) -> None:
        raise StorageError("the disk is tired")

    with monkeypatch.context() as patch:
        patch.setattr(LocalObjects, "delete", refuse)
        with pytest.raises(StorageError):
            settle(store.bank)
    assert [fill(store, f"expert {number}") for number in range(4)] == [0.0, 1.0, 2.0, 3.0]
    assert len(settle(store.bank).cooled) == 4
    assert store.verify() == ()


def test_an_object_in_both_places_is_one(tmp_path: Path) -> None:
    objects = TieredObjects(LocalObjects(tmp_path / "warm"), LocalObjects(tmp_path / "cold"))
    sha256 = objects.put(b"one")
    objects.cold.put(b"one")
    other = objects.cold.put(b"two")
    assert sorted(item.sha256 for item in objects.listing()) == sorted([sha256, other])
    (tmp_path / "warm" / "blobs" / "sha256" / sha256[:2] / sha256).unlink()
    assert (objects.get(sha256), objects.get(other)) == (b"one", b"two")
    objects.delete(sha256)
    assert not objects.has(sha256)


@pytest.mark.parametrize("rotten", ["bank", "cold"])
@pytest.mark.parametrize("archived", [True, False])
def test_a_damaged_twin_in_either_place_costs_no_sound_one(
    store: GovernedStore, tmp_path: Path, rotten: str, archived: bool
) -> None:
    put(store, "law", 7.0)
    weights = store.bank.found("law").weights
    LocalObjects(tmp_path / "cold").put(store.bank.objects.get(weights))
    LocalObjects(tmp_path / rotten).file(weights).write_bytes(b"rot")
    assert fill(store, "law") == 7.0
    if archived:
        Life(store.bank).archive("law")
    moved = settle(store.bank)
    assert (moved.cooled, moved.warmed) == (((weights,), ()) if archived else ((), (weights,)))
    assert (weights in held(tmp_path / "cold"), weights in held(tmp_path / "bank")) == (archived, not archived)
    assert fill(store, "law") == 7.0
    assert store.verify() == ()


@pytest.mark.parametrize("cooling", [True, False])
def test_what_is_moved_while_it_is_read_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cooling: bool
) -> None:
    warm, cold = LocalObjects(tmp_path / "warm"), LocalObjects(tmp_path / "cold")
    source, target = (warm, cold) if cooling else (cold, warm)
    sha256 = source.put(b"one")
    get, has = LocalObjects.get, LocalObjects.has

    def move() -> None:
        if has(source, sha256):
            target.put(b"one")
            source.delete(sha256)

    def has_and_move(self: LocalObjects, asked: str) -> bool:
        found = has(self, asked)
        if self == source:
            move()
        return found

    def get_and_move(self: LocalObjects, asked: str) -> bytes:
        if self == cold or cooling:
            move()
        return get(self, asked)

    monkeypatch.setattr(LocalObjects, "has", has_and_move)
    monkeypatch.setattr(LocalObjects, "get", get_and_move)
    assert TieredObjects(warm, cold).get(sha256) == b"one"


def test_a_bank_of_one_tier_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one tier"):
        settle(opened(tmp_path, Hands()).bank)
