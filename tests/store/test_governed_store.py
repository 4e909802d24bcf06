"""The store with tensors: what is put is got bit for bit, what was changed behind it is refused, and nothing is executed."""

import json
import multiprocessing
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.canonical import canonical_json
from pmemx.core.card import LONGEST, Version
from pmemx.core.card_json import card_values
from pmemx.core.clock import from_microseconds
from pmemx.core.errors import ConfigError, CorruptBlock, Diverged, IncompatibleBlock, StorageError, UnknownBlock
from pmemx.core.event import Action
from pmemx.core.factor_file import key, pack
from pmemx.core.lifecycle import State, Trigger
from pmemx.store import catalogue, changes
from pmemx.store.block_bytes import decode, encode
from pmemx.store.governed import GovernedStore
from pmemx.store.local_objects import LocalObjects
from pmemx.store.manifest import Manifest
from pmemx.store.references import Name
from pmemx.store.verification import findings

SITES = {"model.layers.10.mlp.up_proj": (3, 2.0), "model.layers.2.q_proj": (1, 0.1)}  # not in sorted order
SITE = "model.layers.2.q_proj"


def block(name: str = "law", fill: float = 1.0, **card: Any) -> CapabilityBlock:
    factors = {
        site: LoraFactors(torch.full((rank, 5), fill), torch.full((4, rank), -fill), scale)
        for site, (rank, scale) in SITES.items()
    }
    return CapabilityBlock(replace(BlockCard(name, "domain", "b" * 64), **card), factors)


def fills(store: GovernedStore, reference: str) -> float:
    return store.get(reference).factors[SITE].A[0, 0].item()


@pytest.fixture
def store(tmp_path: Path) -> GovernedStore:
    return GovernedStore(tmp_path / "bank", principal="ann")


def objects(store: GovernedStore) -> LocalObjects:
    found = store.bank.objects
    assert isinstance(found, LocalObjects)
    return found


def weights_file(store: GovernedStore, reference: str = "law") -> Path:
    return objects(store).file(store.bank.manifest(reference).weights)


def test_what_is_put_is_got_bit_for_bit_with_its_card(store: GovernedStore) -> None:
    card: dict[str, Any] = {
        "base_name": "tiny", "base_revision": "r1", "licence": "CC0", "made_by": "pmemx", "created": "2026-11-23T10:00:00Z",
        "parents": ("p" * 64,), "recipe": {"lr": 1e-3, "steps": [1, 2, {"deep": None}]}, "metrics": {"exact": 0.1 + 0.2},
        "peft_config": {"r": 4, "rank_pattern": {"z": 1, "a": 2}}, "extra": {"naïve": "☃"}, "semantic_type": "fact",
        "origin": "imported", "sources": ("doc:1", "doc:2"), "sensitivity": "secret", "priority": 3, "ttl": 1e9,
        "half_life": 0.5, "embedding": (0.1, -1e-30),
    }  # fmt: skip
    given_block = block(**card)
    half = LoraFactors(torch.randn(2, 5).bfloat16(), torch.randn(4, 2).bfloat16(), 1 / 3)
    given_block = CapabilityBlock(given_block.card, {**given_block.factors, "half": half})
    version = store.put(given_block)
    got = store.get("law")
    assert got.card == given_block.card == version.card == store.find("law").card
    assert list(got.card.peft_config["rank_pattern"]) == ["z", "a"]
    assert list(got.factors) == list(given_block.factors)
    for site, factors in given_block.factors.items():
        assert got.factors[site].scale == factors.scale
        assert got.factors[site].A.dtype == factors.A.dtype
        assert torch.equal(got.factors[site].A, factors.A)
        assert torch.equal(got.factors[site].B, factors.B)


def test_slices_of_one_stacked_tensor_are_stored_like_tensors_of_their_own(store: GovernedStore) -> None:
    A, B = torch.randn(2, 3, 5), torch.randn(2, 3, 4)
    views = {f"s{e}": LoraFactors(A[e], B[e].T, 1.0) for e in (0, 1)}
    copies = {site: LoraFactors(f.A.clone(), f.B.contiguous().clone(), 1.0) for site, f in views.items()}
    version = store.put(CapabilityBlock(block().card, views))
    assert store.put(CapabilityBlock(block().card, copies)) == version
    assert torch.equal(store.get("law").factors["s1"].B, B[1].T)


def test_putting_what_is_the_latest_adds_nothing(store: GovernedStore) -> None:
    first = store.put(block())
    assert store.put(block()) == first
    assert store.put(store.get("law")) == first
    second = store.put(block(fill=2.0))
    assert (first.number, second.number) == (1, 2)
    assert store.put(block()).number == 3
    assert [version.digest for version in store.history("law")] == [first.digest, second.digest, first.digest]


def test_a_scale_a_name_or_a_metric_makes_another_digest(store: GovernedStore) -> None:
    one = block()
    scaled = dict(one.factors) | {SITE: replace(one.factors[SITE], scale=0.2)}
    digests = {
        store.put(item).digest
        for item in (one, CapabilityBlock(one.card, scaled), block("other"), block(metrics={"exact": 1.0}))
    }
    assert len(digests) == 4
    assert len(list(objects(store).listing())) == 5  # four manifests share one file of weights


def test_rollback_makes_the_earlier_bytes_the_latest_and_keeps_the_history(store: GovernedStore) -> None:
    first, second = store.put(block()), store.put(block(fill=2.0))
    rolled = store.rollback("law", 1, message="2 was worse")
    assert (rolled.number, rolled.digest, rolled.restores) == (3, first.digest, 1)
    assert store.bank.found("law").message == "2 was worse"
    assert fills(store, "law") == 1.0
    assert store.history("law") == (first, second, rolled)
    assert store.rollback("law", 1) == rolled
    for number in (9, 0, -1):
        with pytest.raises(UnknownBlock, match=f"no '{number}'"):
            store.rollback("law", number)
    with pytest.raises(UnknownBlock, match="no block 'lwa'; did you mean 'law'"):
        store.rollback("lwa", 1)


def test_get_finds_its_block_although_another_is_called_like_its_reference(store: GovernedStore) -> None:
    store.put(block("law", 1.0))
    store.put(block("law@1", 2.0))
    assert (fills(store, "law"), fills(store, "law@1"), fills(store, "law@1@1")) == (1.0, 2.0, 2.0)


def test_another_base_is_refused(store: GovernedStore) -> None:
    store.put(block())
    store.put(block("stray", base=""))
    assert store.get("law", base="b" * 64).card.base == "b" * 64
    with pytest.raises(IncompatibleBlock, match="made on base bbbbbbbbbbbb"):
        store.get("law", base="c" * 64)
    with pytest.raises(IncompatibleBlock, match="names no base"):
        store.get("stray", base="c" * 64)


def test_a_writer_who_came_second_is_told_and_changes_nothing(store: GovernedStore) -> None:
    assert store.put(block(), after=0).number == 1
    assert store.put(block(fill=2.0), after=1).number == 2
    for stale in (0, 1, 3):
        with pytest.raises(Diverged, match=f"shared/law has versions up to 2, not {stale}: .* read it again"):
            store.put(block(fill=3.0), after=stale)
        with pytest.raises(Diverged):
            store.put(block(fill=2.0), after=stale)  # even with the bytes that are there
    assert [version.number for version in store.history("law")] == [1, 2]
    with pytest.raises(Diverged, match="shared/tax has versions up to 0, not 1"):
        store.put(block("tax"), after=1)
    assert store.names() == ("law",)


def test_the_same_bytes_begin_the_new_life_of_an_expired_block(store: GovernedStore) -> None:
    store.put(block())
    with store.bank.transaction() as now:
        for to, trigger in ((State.ARCHIVED, Trigger.ARCHIVE), (State.EXPIRED, Trigger.EXPIRE)):
            changes.move(now, Name("shared", "law"), to, trigger)
    with pytest.raises(
        UnknownBlock, match=r"shared/law expired at .* \(entry 3, by ann\); only this tombstone is left"
    ):
        store.get("law")
    assert store.put(block()).number == 2
    assert fills(store, "law") == 1.0
    assert store.names() == ("law",)


def test_reading_a_bank_that_is_not_there_creates_nothing(store: GovernedStore) -> None:
    assert (store.names(), store.verify(), store.bank.ledger.bank_id()) == ((), (), "")
    for look_up in (store.get, store.find, store.history, store.tags, store.bank.manifest, store.bank.at(0).find):
        with pytest.raises(UnknownBlock, match="the bank holds 0 blocks"):
            look_up("law")
    assert not Path(store.path).exists()


@pytest.mark.parametrize(
    ("card", "error", "reason"),
    [
        ({"extra": {"when": object()}}, TypeError, "no canonical form"),
        ({"recipe": {"loss": float("nan")}}, ConfigError, "NaN is no number of JSON"),
        ({"metrics": {"loss": float("inf")}}, ConfigError, "Infinity is no number of JSON"),
        ({"made_by": "\udcff"}, ConfigError, "cannot be kept as JSON"),
    ],
)
def test_a_card_that_is_no_json_is_refused_and_leaves_no_trace(
    card: dict[str, Any], error: type[Exception], reason: str, store: GovernedStore
) -> None:
    with pytest.raises(error, match=reason):
        store.put(block(**card))
    assert not Path(store.path).exists()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_factors_that_are_not_finite_never_become_a_block(number: float) -> None:
    A, B = torch.ones(2, 5), torch.ones(4, 2)
    for spoilt in (A, B):
        spoilt = spoilt.clone()
        spoilt[-1, -1] = number
        with pytest.raises(CorruptBlock, match="NaN or infinity"):
            LoraFactors(spoilt if spoilt.shape == A.shape else A, spoilt if spoilt.shape == B.shape else B, 1.0)
    with pytest.raises(CorruptBlock, match="NaN or infinity"):
        LoraFactors(A, B, number)


def test_the_longest_time_to_live_still_ends_on_a_date(store: GovernedStore) -> None:
    store.put(block(ttl=LONGEST))
    assert store.names() == ("law",)
    assert store.verify() == ()
    with store.bank.ledger.reading() as now:
        (line,) = catalogue.listing(now)
    assert 5000 < from_microseconds(line.expires).year < 9999


def flip(path: Path, position: int = -3) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flip": flip,
    "truncate": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "empty": lambda path: path.write_bytes(b""),
    "remove": Path.unlink,
    "extend": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_noticed_named_and_mended_by_putting_again(damage: str, store: GovernedStore) -> None:
    store.put(block())
    store.put(block("sound", 3.0))
    path = weights_file(store)
    DAMAGES[damage](path)
    with pytest.raises(CorruptBlock, match=path.name):
        store.get("law")
    (finding,) = store.verify()
    assert all(part in finding for part in ("'law'", path.name, "put its block again"))
    assert fills(store, "sound") == 3.0
    store.put(block())
    assert store.verify() == ()
    assert fills(store, "law") == 1.0


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_is_noticed_named_and_mended_by_putting_again(damage: str, store: GovernedStore) -> None:
    digest = store.put(block()).digest
    DAMAGES[damage](objects(store).file(digest))
    with pytest.raises(CorruptBlock, match=f"manifest {digest[:12]} of shared/law: .*{digest}"):
        store.get("law")
    assert len(store.verify()) == 1
    store.put(block())
    assert store.verify() == ()


def test_a_tampered_alpha_in_the_manifest_is_noticed(store: GovernedStore) -> None:
    digest = store.put(block()).digest
    path = objects(store).file(digest)
    assert b'"scale":0.1' in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b'"scale":0.1', b'"scale":10.0'))
    with pytest.raises(CorruptBlock, match=digest):
        store.get("law")
    assert len(store.verify()) == 1


def forge(store: GovernedStore, manifest: Manifest, weights: bytes) -> Version:
    """A version whose every digest is right, though what they name is not."""
    digest = objects(store).put(weights)
    return store.bank.commit(replace(manifest, weights=digest, size=len(weights)), weights)


TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], str]] = {
    "one more tensor": (lambda state: state | {"extra": torch.ones(1)}, "differ in extra"),
    "one more site": (lambda state: state | {key("other", "A"): torch.ones(1, 5)}, "differ in other"),
    "no B": (lambda state: {k: v for k, v in state.items() if k != key(SITE, "B")}, f"differ in {SITE}"),
    "another width": (lambda state: state | {key(SITE, "A"): torch.ones(1, 6)}, f"differ in {SITE}"),
    "another rank": (lambda state: state | {key(SITE, "A"): torch.ones(2, 5)}, f"differ in {SITE}"),
    "a vector": (lambda state: state | {key(SITE, "A"): torch.ones(5)}, f"differ in {SITE}"),
    "NaN": (lambda state: state | {key(SITE, "A"): torch.full((1, 5), float("nan"))}, "NaN"),
    "infinity": (lambda state: state | {key(SITE, "B"): torch.full((4, 1), float("inf"))}, "NaN or infinity"),
    "NaN of half precision": (
        lambda state: state | {key(SITE, "A"): torch.full((1, 5), float("nan"), dtype=torch.float16)}, "NaN",
    ),
    "whole numbers": (lambda state: state | {key(SITE, "A"): torch.ones(1, 5, dtype=torch.int64)}, "no floating-point"),
    "truth values": (lambda state: state | {key(SITE, "A"): torch.ones(1, 5, dtype=torch.bool)}, "no floating-point"),
    "eight bits": (
        lambda state: state | {key(SITE, "A"): torch.ones(1, 5).to(torch.float8_e4m3fn)}, "no floating-point",
    ),
    "complex numbers": (
        lambda state: state | {key(SITE, "A"): torch.ones(1, 5, dtype=torch.complex64)}, "no floating-point",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", TENSORS)
def test_forged_weights_under_a_consistent_digest_are_still_refused(change: str, store: GovernedStore) -> None:
    alter, reason = TENSORS[change]
    forged = safetensors.torch.save(alter(safetensors.torch.load(pack(block().factors))))
    store.put(block())
    forge(store, store.bank.manifest("law"), forged)
    with pytest.raises(CorruptBlock, match=reason):
        store.get("law")
    (finding,) = store.verify()
    assert "'law'" in finding
    assert fills(store, "law@1") == 1.0


def test_a_ledger_whose_card_is_not_the_manifests_is_noticed(store: GovernedStore) -> None:
    store.put(block(sensitivity="secret"))
    genuine = store.bank.manifest("law")
    milder = card_values(replace(genuine.card, sensitivity="public"))
    detail = {
        "uid": "", "number": 2, "digest": genuine.digest, "weights": genuine.weights, "size": genuine.size, "rank": 3,
        "sites": 2, "restores": None, "message": "", "card": milder,
    }  # fmt: skip
    with store.bank.transaction() as now:
        now.append(Action.COMMIT, Name("shared", "law"), detail)
    (finding,) = store.verify()
    assert "its manifest holds another card than the ledger" in finding


def test_a_pickle_among_the_objects_is_never_opened(store: GovernedStore, tmp_path: Path) -> None:
    bomb = b"cos\nsystem\n(S'touch " + str(tmp_path / "opened").encode() + b"'\ntR."
    store.put(block())
    forge(store, store.bank.manifest("law"), bomb)
    with pytest.raises(CorruptBlock, match="not a whole safetensors file"):
        store.get("law")
    assert "not a whole safetensors file" in store.verify()[0]
    path = objects(store).file(store.bank.find("law").digest)
    path.write_bytes(bomb)
    with pytest.raises(CorruptBlock, match="other bytes"):
        store.get("law")
    assert not (tmp_path / "opened").exists()


def test_a_link_in_the_place_of_an_object_is_not_followed(store: GovernedStore, tmp_path: Path) -> None:
    store.put(block())
    path = weights_file(store)
    outside = tmp_path / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(CorruptBlock, match="is missing"):
        store.get("law")
    store.put(block())
    assert not path.is_symlink()
    assert fills(store, "law") == 1.0


FORMAT_1 = {
    "name": "law", "domain": "contracts", "base": "b" * 64, "base_name": "tiny", "licence": "CC0", "made_by": "pmemx 0.1",
    "created": "2026-11-20T10:00:00Z", "parents": ["p" * 64], "recipe": {"lr": 1e-3}, "metrics": {"exact": 0.5},
    "peft_config": '{"rank_pattern": {"z": 1, "a": 2}}', "extra": {"team": "legal"},
}  # fmt: skip


def format_1(**extra: Any) -> bytes:
    """What pmemx 0.1.0 wrote for a block."""
    weights = pack(block().factors)
    sites = [
        {"name": name, "rank": item.rank, "width_in": 5, "width_out": 4, "scale": item.scale}
        for name, item in block().factors.items()
    ]
    held = {"sha256": "ab" * 32, "size": len(weights)}
    card = FORMAT_1 | {"extra": {**FORMAT_1["extra"], **extra}}
    return canonical_json({"format": 1, "kind": "lora", "card": card, "sites": sites, "weights": held}).encode()


def test_a_manifest_of_format_1_is_read() -> None:
    manifest = Manifest.decode(format_1())
    card = manifest.card
    assert (card.name, card.licence, card.parents, card.extra) == ("law", "CC0", ("p" * 64,), {"team": "legal"})
    assert list(card.peft_config["rank_pattern"]) == ["z", "a"]
    assert (card.sensitivity, card.priority, card.ttl) == ("internal", 0, None)
    assert [site.name for site in manifest.sites] == list(SITES)
    assert list(decode(manifest, pack(block().factors)).factors) == list(SITES)
    again = manifest.encode()
    assert json.loads(again)["format"] == 2
    assert json.loads(again)["card"]["team"] == "legal"
    assert Manifest.decode(again) == manifest


def test_what_format_1_had_aside_under_the_name_of_a_field_stays_aside() -> None:
    aside = {"name": "not law", "origin": "a wiki", "priority": "high"}
    card = Manifest.decode(format_1(**aside)).card
    assert (card.name, card.origin, card.priority) == ("law", "", 0)
    assert card.extra == {"team": "legal", "extra_of_format_1": aside}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"format":2}', b'{"format":1,"card":{}}', b"\xff", b"null"]
)
def test_a_manifest_that_is_none_is_corrupt(content: bytes) -> None:
    with pytest.raises(CorruptBlock):
        Manifest.decode(content)


def test_a_manifest_of_a_later_format_says_to_upgrade() -> None:
    later = encode(block())[0].encode().replace(b'"format":2', b'"format":3')
    with pytest.raises(CorruptBlock, match="its format is 3, this pmemx reads up to 2; upgrade pmemx"):
        Manifest.decode(later)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"rank":1', b'"rank":-1'),
        (b'"rank":1', b'"rank":1.5'),
        (b'"rank":1', b'"rank":99999999999999999999'),
        (b'"scale":0.1', b'"scale":1e999'),
        (b'"scale":0.1', b'"scale":NaN'),
        (b'"scale":0.1', b'"scale":"0.1"'),
        (b'"name":"model.layers.2.q_proj"', b'"name":7'),
        (b'"name":"model.layers.2.q_proj"', b'"name":"model.layers.10.mlp.up_proj"'),
        (b'"size":', b'"size":-'),
        (b'"sha256":"', b'"sha256":1,"x":"'),
        (b'"priority":0', b'"priority":"0"'),
        (b'"ttl":null', b'"ttl":0'),
        (b'"ttl":null', b'"ttl":-1' + b"0" * 400),
        (b'"sensitivity":"internal"', b'"sensitivity":"none"'),
        (b'"recipe":{}', b'"recipe":[]'),
        (b'"recipe":{}', b'"recipe":' + b"[" * 100_000),
        (b'"priority":0', b'"priority":' + b"1" * 5000),
    ],
)  # fmt: skip
def test_a_manifest_with_a_value_that_cannot_be_is_corrupt(old: bytes, new: bytes) -> None:
    sound = encode(block())[0].encode()
    assert old in sound
    with pytest.raises(CorruptBlock, match="it is no manifest"):
        Manifest.decode(sound.replace(old, new))


@pytest.mark.parametrize("digest", ["../../../etc/passwd", "", "0" * 63, "A" * 64, "\x00" * 64])
def test_a_digest_that_is_a_path_reads_no_file(digest: str, store: GovernedStore) -> None:
    store.put(block())
    forged = replace(store.bank.manifest("law"), weights=digest)
    with store.bank.transaction() as now:
        objects(store).put(forged.encode())
        changes.commit(now, Name("shared", "law"), forged)
    with pytest.raises(CorruptBlock, match="is no sha-256"):
        store.get("law")
    assert "is no sha-256" in store.verify()[0]


def test_what_a_crash_leaves_behind_does_not_matter(store: GovernedStore) -> None:
    store.put(block())
    path = weights_file(store)
    (path.parent / f".{path.name}.0123.tmp").write_bytes(b"half")
    objects(store).put(b"weights without a version")
    assert store.verify() == ()
    assert store.names() == ("law",)


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failure_at_any_object_leaves_the_previous_state_whole(
    failing: int, store: GovernedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(block())
    calls = iter(range(1, 99))
    sync = os.fsync

    def full_disk(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode) and next(calls) == failing:
            raise OSError(28, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        store.put(block(fill=2.0))
    monkeypatch.undo()
    assert store.verify() == ()
    assert len(store.history("law")) == 1
    assert not list(Path(store.path).rglob("*.tmp"))
    assert store.put(block(fill=2.0)).number == 2


@pytest.mark.skipif(os.name != "posix", reason="permissions follow a umask on posix only")
@pytest.mark.parametrize(("umask", "mode"), [(0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_files_follow_the_umask(umask: int, mode: int, store: GovernedStore) -> None:
    old = os.umask(umask)
    try:
        store.put(block())
    finally:
        os.umask(old)
    files = [path for path in Path(store.path).rglob("*") if path.is_file()]
    assert "bank.db" in {path.name for path in files}
    # SQLite makes its files 0644 where the umask lets it: nobody outside the owner writes a ledger by accident.
    assert {stat.S_IMODE(path.stat().st_mode) & ~0o020 for path in files} == {mode & ~0o020}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files if len(path.name) == 64} == {mode}


def _put_many(path: str, worker: int) -> None:
    torch.set_num_threads(1)
    for step in range(4):
        GovernedStore(Path(path)).put(block("shared", fill=float(100 * worker + step)))
        GovernedStore(Path(path)).put(block(f"own {worker}", fill=float(step)))
        GovernedStore(Path(path)).tag("shared", f"worker {worker}")


def test_several_processes_may_put_at_once(store: GovernedStore) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_put_many, args=(str(store.path), worker)) for worker in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    history = store.history("shared")
    assert [version.number for version in history] == list(range(1, 13))
    assert sorted(fills(store, f"shared@{version.number}") for version in history) == sorted(
        float(100 * worker + step) for worker in range(3) for step in range(4)
    )
    assert store.tags("shared").keys() == {"worker 0", "worker 1", "worker 2"}
    assert [len(store.history(f"own {worker}")) for worker in range(3)] == [4, 4, 4]
    assert store.verify() == ()


def test_a_store_may_be_sent_to_another_process(store: GovernedStore) -> None:
    store.put(block())
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(store.names) == ("law",)


def test_listing_tagging_and_rolling_back_import_no_torch(store: GovernedStore) -> None:
    store.put(block())
    store.put(block(fill=2.0))
    store.tag("law@1", "stable")
    store.rollback("law", 1)
    code = (
        "import sys; from pathlib import Path; from pmemx.store.bank import Bank\n"
        "from pmemx.store.verification import findings\n"
        f"bank = Bank(Path({str(store.path)!r}))\n"
        "print(bank.names(), [v.number for v in bank.history('law')], bank.tags('law'), bank.find('law').restores)\n"
        "print(bank.manifest('law').sites[1].scale, bank.rollback('law', 2).number, list(findings(bank)))\n"
        "assert not {'torch', 'safetensors', 'peft', 'transformers', 'numpy'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd(),
                          env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])})  # fmt: skip
    assert done.stdout.splitlines() == ["('law',) [1, 2, 3] {'stable': 1} 1", "0.1 4 []"]


def test_tensors_are_checked_by_a_store_and_digests_by_a_bank(store: GovernedStore) -> None:
    store.put(block())
    forge(store, store.bank.manifest("law"), b"no tensors")
    assert list(findings(store.bank)) == []
    assert len(store.verify()) == 1


def test_weights_that_are_not_those_of_their_manifest_are_refused_and_leave_no_trace(store: GovernedStore) -> None:
    manifest, weights = encode(block())
    for wrong in (weights[:-1], weights[:-1] + bytes([weights[-1] ^ 1]), b""):
        with pytest.raises(
            CorruptBlock, match=r"of other content than the .* that its manifest names; encode the block"
        ):
            store.bank.commit(manifest, wrong)
    assert not Path(store.path).exists()
