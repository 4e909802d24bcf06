"""The folder store against a dictionary, against faults, and among processes."""

import json
import multiprocessing
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.errors import ConfigError, CorruptBlock, IncompatibleBlock, UnknownBlock
from pmemx.core.factor_file import key, pack
from pmemx.store.folder import FolderStore
from pmemx.store.index import FolderIndex
from pmemx.store.manifest import Manifest

SITES = {"model.layers.10.mlp.up_proj": (3, 2.0), "model.layers.2.q_proj": (1, 0.1)}  # not in sorted order


def block(name: str = "law", fill: float = 1.0, **card: object) -> CapabilityBlock:
    factors = {
        site: LoraFactors(torch.full((rank, 5), fill), torch.full((4, rank), -fill), scale)
        for site, (rank, scale) in SITES.items()
    }
    return CapabilityBlock(replace(BlockCard(name, "domain", "b" * 64), **card), factors)


def fills(store: FolderStore, reference: str) -> float:
    return store.get(reference).factors["model.layers.2.q_proj"].A[0, 0].item()


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "bank")


def weights_file(store: FolderStore, reference: str = "law") -> Path:
    index = store.index
    return index.blobs.file(index.manifest(store.find(reference).digest).weights)


def test_what_is_put_is_got_bit_for_bit_with_its_card(store: FolderStore) -> None:
    card = {
        "base_name": "tiny", "licence": "CC0", "made_by": "pmemx", "created": "2026-11-23T10:00:00Z", "parents": ("p" * 64,),
        "recipe": {"lr": 1e-3, "steps": [1, 2, {"deep": None}]}, "metrics": {"exact": 0.1 + 0.2},
        "peft_config": {"r": 4, "rank_pattern": {"z": 1, "a": 2}}, "extra": {"naïve": "☃"},
    }  # fmt: skip
    given_block = block(**card)
    half = LoraFactors(torch.randn(2, 5).bfloat16(), torch.randn(4, 2).bfloat16(), 1 / 3)
    given_block = CapabilityBlock(given_block.card, {**given_block.factors, "half": half})
    store.put(given_block)
    got = store.get("law")
    assert got.card == given_block.card
    assert list(got.card.peft_config["rank_pattern"]) == ["z", "a"]
    assert list(got.factors) == list(given_block.factors)
    for site, factors in given_block.factors.items():
        assert got.factors[site].scale == factors.scale
        assert got.factors[site].A.dtype == factors.A.dtype
        assert torch.equal(got.factors[site].A, factors.A)
        assert torch.equal(got.factors[site].B, factors.B)


def test_slices_of_one_stacked_tensor_are_stored_like_tensors_of_their_own(store: FolderStore) -> None:
    A, B = torch.randn(2, 3, 5), torch.randn(2, 3, 4)
    views = {f"s{e}": LoraFactors(A[e], B[e].T, 1.0) for e in (0, 1)}
    copies = {site: LoraFactors(f.A.clone(), f.B.contiguous().clone(), 1.0) for site, f in views.items()}
    version = store.put(CapabilityBlock(block().card, views))
    assert store.put(CapabilityBlock(block().card, copies)) == version
    assert torch.equal(store.get("law").factors["s1"].B, B[1].T)


def test_putting_what_is_the_latest_adds_nothing(store: FolderStore) -> None:
    first = store.put(block())
    assert store.put(block()) == first
    assert store.put(store.get("law")) == first
    second = store.put(block(fill=2.0))
    assert (first.number, second.number) == (1, 2)
    assert store.put(block()).number == 3
    assert [version.digest for version in store.history("law")] == [first.digest, second.digest, first.digest]


def test_a_scale_a_name_or_a_metric_makes_another_digest(store: FolderStore) -> None:
    one = block()
    site = "model.layers.2.q_proj"
    scaled = dict(one.factors) | {site: replace(one.factors[site], scale=0.2)}
    digests = {
        store.put(item).digest
        for item in (one, CapabilityBlock(one.card, scaled), block("other"), block(metrics={"exact": 1.0}))
    }
    assert len(digests) == 4
    assert len(list((Path(store.path) / "blobs").rglob("?" * 64))) == 5  # four manifests share one file of weights


def test_references_by_hand(store: FolderStore) -> None:
    first, second = store.put(block()), store.put(block(fill=2.0))
    store.tag("law@1", "stable")
    assert [fills(store, r) for r in ("law", "law@2", "law@latest", second.digest, second.digest[:12])] == [2.0] * 5
    assert [fills(store, r) for r in ("law@1", "law@stable", first.digest)] == [1.0] * 3
    assert store.tags("law") == {"stable": 1}
    assert store.find("law@stable") == store.history("law")[0]
    store.tag(second.digest, "stable")
    assert store.tags("law") == {"stable": 2}


def test_a_name_that_looks_like_a_reference_is_a_name_first(store: FolderStore) -> None:
    store.put(block("law", 1.0))
    store.put(block("law@1", 2.0))
    store.put(block("a" * 12, 3.0))
    assert (fills(store, "law@1"), fills(store, "law@1@1"), fills(store, "a" * 12)) == (2.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("reference", "hint"),
    [
        ("lwa", "did you mean 'law'"),
        ("law@7", "versions 1 to 1 and tags best, but no '7'"),
        ("law@0", "no '0'"),
        ("law@bset", "no 'bset'"),
        ("nothing@1", "it holds 1 blocks"),
        ("0123456789ab", "no version begins with digest 0123456789ab"),
        ("0123", "no block '0123'"),
        ("", "no block ''"),
    ],
)
def test_an_unknown_reference_says_what_there_is(reference: str, hint: str, store: FolderStore) -> None:
    store.put(block())
    store.tag("law", "best")
    for look_up in (store.find, store.get):
        with pytest.raises(UnknownBlock, match=hint):
            look_up(reference)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "0", "mlp", "CON", "a/b\\c", ".", "-rf", "👩‍🔬 ☃", "x" * 300, "law "]
)
def test_any_visible_name_is_only_a_name(name: str, store: FolderStore, tmp_path: Path) -> None:
    store.put(block(name))
    assert store.names() == (name,)
    assert store.get(name).card.name == name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bank"]
    assert sorted(path.name for path in (tmp_path / "bank").iterdir()) == ["blobs", "lock", "refs"]
    assert store.verify() == ()


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\x00b", "\x1b[31mred", "abc\u202egnp", "\ud800"])
def test_a_name_that_cannot_be_shown_is_refused_and_leaves_no_trace(name: str, store: FolderStore) -> None:
    with pytest.raises(ConfigError, match="visible text"):
        store.put(block(name))
    assert not Path(store.path).exists()


@pytest.mark.parametrize("tag", ["", "3", "latest", "a@b", "a\nb"])
def test_a_tag_that_could_be_mistaken_is_refused(tag: str, store: FolderStore) -> None:
    store.put(block())
    with pytest.raises(ConfigError, match="a tag is a word"):
        store.tag("law", tag)
    assert store.tags("law") == {}


def test_rollback_makes_the_earlier_bytes_the_latest_and_keeps_the_history(store: FolderStore) -> None:
    first, second = store.put(block()), store.put(block(fill=2.0))
    rolled = store.rollback("law", 1)
    assert (rolled.number, rolled.digest, rolled.restores) == (3, first.digest, 1)
    assert fills(store, "law") == 1.0
    assert store.history("law") == (first, second, rolled)
    assert store.rollback("law", 1) == rolled
    with pytest.raises(UnknownBlock, match="no '9'"):
        store.rollback("law", 9)


def test_another_base_is_refused(store: FolderStore) -> None:
    store.put(block())
    store.put(block("stray", base=""))
    assert store.get("law", base="b" * 64).card.base == "b" * 64
    with pytest.raises(IncompatibleBlock, match="made on base bbbbbbbbbbbb"):
        store.get("law", base="c" * 64)
    with pytest.raises(IncompatibleBlock, match="names no base"):
        store.get("stray", base="c" * 64)


def test_reading_a_store_that_is_not_there_creates_nothing(store: FolderStore) -> None:
    assert (store.names(), store.verify()) == ((), ())
    with pytest.raises(UnknownBlock, match="it holds 0 blocks"):
        store.get("law")
    assert not Path(store.path).exists()


def test_a_card_that_is_no_json_is_refused(store: FolderStore) -> None:
    with pytest.raises(TypeError, match="canonical form"):
        store.put(block(extra={"when": object()}))
    assert store.names() == ()


# Names that collide as paths, differ only in case, or in their unicode form.
NAMES = st.sampled_from(["a", "A", "a@1", "../a", "é", "e\u0301", "0"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), NAMES, st.integers(0, 3)),
        st.tuples(st.just("tag"), NAMES, st.integers(1, 4), st.sampled_from(["best", "prod"])),
        st.tuples(st.just("rollback"), NAMES, st.integers(1, 4)),
    ),
    max_size=12,
)


@given(STEPS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sequence_of_steps_agrees_with_a_dictionary(tmp_path_factory, steps: list[tuple]) -> None:
    store = FolderStore(tmp_path_factory.mktemp("bank"))
    contents: dict[str, list[float]] = {}
    tags: dict[str, dict[str, int]] = {}
    for step, name, number, *rest in steps:
        versions = contents.get(name, [])
        if step == "put":
            contents[name] = versions if versions[-1:] == [float(number)] else [*versions, float(number)]
            assert store.put(block(name, float(number))).number == len(contents[name])
        elif number > len(versions):
            with pytest.raises(UnknownBlock):
                store.find(f"{name}@{number}")
        elif step == "tag":
            store.tag(f"{name}@{number}", rest[0])
            tags.setdefault(name, {})[rest[0]] = number
        else:
            store.rollback(name, number)
            if versions[-1] != versions[number - 1]:
                contents[name] = [*versions, versions[number - 1]]
    assert store.names() == tuple(sorted(contents))
    for name, versions in contents.items():
        assert [fills(store, version.digest) for version in store.history(name)] == versions
        assert fills(store, name) == versions[-1]
        assert store.tags(name) == tags.get(name, {})
    assert store.verify() == ()


@given(st.text(min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_any_text_is_a_name_or_is_refused(tmp_path_factory, name: str) -> None:
    store = FolderStore(tmp_path_factory.mktemp("bank"))
    try:
        store.put(block(name))
    except ConfigError:
        assert store.names() == ()
    else:
        assert store.get(name).card.name == name
        assert store.verify() == ()


def flip(path: Path, position: int = -3) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("fault", ["flip", "truncate", "empty", "remove", "extend"])
def test_damaged_weights_are_noticed_named_and_mended_by_putting_again(fault: str, store: FolderStore) -> None:
    store.put(block())
    store.put(block("sound", 3.0))
    path = weights_file(store)
    data = path.read_bytes()
    {
        "flip": lambda: flip(path),
        "truncate": lambda: path.write_bytes(data[:-5]),
        "empty": lambda: path.write_bytes(b""),
        "remove": path.unlink,
        "extend": lambda: path.write_bytes(data + b"\0"),
    }[fault]()
    with pytest.raises(CorruptBlock, match=path.name):
        store.get("law")
    (finding,) = store.verify()
    assert "'law'" in finding
    assert path.name in finding
    assert "put its block again" in finding
    assert fills(store, "sound") == 3.0
    store.put(block())
    assert store.verify() == ()
    assert fills(store, "law") == 1.0


def test_a_tampered_alpha_in_the_manifest_is_noticed(store: FolderStore) -> None:
    digest = store.put(block()).digest
    path = store.index.blobs.file(digest)
    assert b'"scale":0.1' in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b'"scale":0.1', b'"scale":10.0'))
    with pytest.raises(CorruptBlock, match=digest):
        store.get("law")
    assert len(store.verify()) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state | {"extra": torch.ones(1)}, "differ in extra"),
        (lambda state: state | {key("other", "A"): torch.ones(1, 5)}, "differ in other"),
        (lambda state: {k: v for k, v in state.items() if k != key("model.layers.2.q_proj", "B")}, "differ in model"),
        (lambda state: state | {key("model.layers.2.q_proj", "A"): torch.ones(1, 6)}, "differ in model.layers.2"),
        (lambda state: state | {key("model.layers.2.q_proj", "A"): torch.full((1, 5), float("nan"))}, "NaN"),
    ],
)
def test_forged_weights_under_a_consistent_digest_are_still_refused(change, reason: str, store: FolderStore) -> None:
    forged = safetensors.torch.save(change(safetensors.torch.load(pack(block().factors))))
    genuine = store.index.manifest(store.put(block()).digest)
    blobs = store.index.blobs
    manifest = replace(genuine, weights=blobs.put(forged), size=len(forged))
    store.index.append("law", blobs.put(manifest.encode()))
    with pytest.raises(CorruptBlock, match=reason):
        store.get("law")
    assert fills(store, "law@1") == 1.0


def test_a_pickle_among_the_blobs_is_never_opened(store: FolderStore, tmp_path: Path) -> None:
    bomb = b"cos\nsystem\n(S'touch " + str(tmp_path / "opened").encode() + b"'\ntR."
    genuine = store.index.manifest(store.put(block()).digest)
    blobs = store.index.blobs
    store.index.append("law", blobs.put(replace(genuine, weights=blobs.put(bomb)).encode()))
    with pytest.raises(CorruptBlock, match="not a whole safetensors file"):
        store.get("law")
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"format":2}', b'{"format":1,"card":{}}', b"\xff"])
def test_a_manifest_that_is_none_is_corrupt(content: bytes) -> None:
    with pytest.raises(CorruptBlock):
        Manifest.decode(content)


def test_a_record_changed_by_hand_is_noticed_and_named(store: FolderStore) -> None:
    store.put(block())
    store.put(block(fill=2.0))
    store.tag("law@2", "prod")
    (path,) = (Path(store.path) / "refs").glob("*.json")
    whole = path.read_text()
    for damaged in (whole.replace('"prod": 2', '"prod": 1'), whole[: len(whole) // 2], "", "[]"):
        path.write_text(damaged)
        with pytest.raises(CorruptBlock, match=path.name):
            store.get("law")
        (finding,) = store.verify()
        assert path.name in finding
    path.write_text(whole)
    assert store.verify() == ()
    path.rename(path.with_name("f" * 32 + ".json"))
    assert "holds the record of 'law'" in store.verify()[0]


def test_what_a_crash_leaves_behind_does_not_matter(store: FolderStore) -> None:
    store.put(block())
    path = weights_file(store)
    (path.parent / f".{path.name}.0123.tmp").write_bytes(b"half")
    (Path(store.path) / "refs" / ".x.json.0123.tmp").write_bytes(b"half")
    store.index.blobs.put(b"weights without a version")
    assert store.verify() == ()
    assert store.names() == ("law",)


@pytest.mark.parametrize("failing", range(1, 4))
def test_a_failure_at_any_write_leaves_the_previous_state_whole(failing: int, store: FolderStore, monkeypatch) -> None:
    store.put(block())
    calls = iter(range(1, 99))
    sync = os.fsync

    def full_disk(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode) and next(calls) == failing:
            raise OSError(28, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        store.put(block(fill=2.0))
    monkeypatch.undo()
    assert store.verify() == ()
    assert len(store.history("law")) == 1
    assert not list(Path(store.path).rglob("*.tmp"))
    assert store.put(block(fill=2.0)).number == 2


@pytest.mark.skipif(os.name != "posix", reason="permissions follow a umask on posix only")
def test_files_follow_the_umask(store: FolderStore) -> None:
    old = os.umask(0o027)
    try:
        store.put(block())
    finally:
        os.umask(old)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in Path(store.path).rglob("*") if path.is_file()}
    assert modes == {0o640}


def _put_many(path: str, worker: int) -> None:
    torch.set_num_threads(1)
    for step in range(6):
        FolderStore(path).put(block("shared", fill=float(100 * worker + step)))
        FolderStore(path).put(block(f"own {worker}", fill=float(step)))
        FolderStore(path).tag("shared", f"worker {worker}")


def test_several_processes_may_put_at_once(store: FolderStore) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_put_many, args=(str(store.path), worker)) for worker in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    history = store.history("shared")
    assert [version.number for version in history] == list(range(1, 19))
    assert sorted(fills(store, version.digest) for version in history) == sorted(
        float(100 * worker + step) for worker in range(3) for step in range(6)
    )
    assert store.tags("shared").keys() == {"worker 0", "worker 1", "worker 2"}
    assert [len(store.history(f"own {worker}")) for worker in range(3)] == [6, 6, 6]
    assert store.verify() == ()


def test_listing_imports_no_torch(store: FolderStore) -> None:
    store.put(block())
    store.put(block(fill=2.0))
    store.tag("law@1", "stable")
    store.rollback("law", 1)
    code = (
        "import sys; from pathlib import Path; from pmemx.store.index import FolderIndex\n"
        f"index = FolderIndex(Path({str(store.path)!r}))\n"
        "print(index.names(), [v.number for v in index.history('law')], index.tags('law'), index.find('law').restores)\n"
        "print(index.manifest(index.find('law').digest).sites[1].scale, index.rollback('law', 2).number)\n"
        "assert not {'torch', 'safetensors', 'peft', 'transformers', 'numpy'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd(),
                          env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])})  # fmt: skip
    assert done.stdout.splitlines() == ["('law',) [1, 2, 3] {'stable': 1} 1", "0.1 4"]


def test_the_record_on_disk_is_readable_json(store: FolderStore) -> None:
    version = store.put(block("naïve ☃"))
    record = json.loads(FolderIndex(Path(store.path)).file("naïve ☃").read_text(encoding="utf-8"))["record"]
    assert record["name"] == "naïve ☃"
    assert record["versions"] == [{"digest": version.digest, "restores": None}]
