"""Bytes that somebody changed: readers raise errors of pmemx and no others, and no changed object is ever loaded."""

import hashlib
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.card_json import card_from, card_values
from pmemx.core.errors import ConfigError, CorruptBlock, PmemxError
from pmemx.core.factor_file import key, unpack
from pmemx.core.profile import Profile
from pmemx.store.block_bytes import decode, encode
from pmemx.store.governed import GovernedStore
from pmemx.store.local_objects import LocalObjects
from pmemx.store.manifest import Manifest

# 200 examples of each reader below: more than a thousand cases in all.
MANY = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def sound() -> CapabilityBlock:
    card = BlockCard(
        "naïve ☃", "contracts", "b" * 64, "tiny", licence="CC0", semantic_type="fact", origin="imported", sources=("doc:1",),
        priority=2, ttl=3600.0, half_life=60.0, embedding=(0.5, -1.0), parents=("p" * 64,), recipe={"lr": 1e-3, "deep": [{}]},
        metrics={"exact": 0.5}, peft_config={"r": 2, "rank_pattern": {"z": 1}}, extra={"team": "legal"},
    )  # fmt: skip
    factors = {
        "model.layers.0.q_proj": LoraFactors(torch.ones(2, 3), torch.ones(4, 2), 0.5),
        "model.layers.1.q_proj": LoraFactors(torch.ones(1, 3).half(), torch.ones(4, 1).half(), 2.0),
    }
    return CapabilityBlock(card, factors)


MANIFEST, WEIGHTS = encode(sound())
ENCODED = MANIFEST.encode()
PROFILE = Profile("legal", {"law": 1.0, "tax": 0.25}, {"law": "law@3"}).to_json()

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@st.composite
def mutations(draw: st.DrawFn, data: bytes) -> bytes:
    """The data after one to three changes: bits flipped, a piece cut out, doubled, put in or moved to the end."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.sampled_from([0, 1, 2, 8, 40]))
        head, piece, tail = data[:at], data[at : at + length], data[at + length :]
        change = draw(st.sampled_from(["flip", "cut", "truncate", "double", "insert", "replace", "move"]))
        if change == "flip" and tail:
            data = head + piece + bytes([tail[0] ^ draw(st.integers(1, 255))]) + tail[1:]
        elif change == "cut":
            data = head + tail
        elif change == "truncate":
            data = head
        elif change == "double":
            data = head + piece + piece + tail
        elif change == "insert":
            data = head + draw(st.binary(max_size=9)) + piece + tail
        elif change == "replace":
            data = (
                head
                + draw(
                    st.sampled_from([b"null", b"-1", b"1e999", b"NaN", b'"', b"{}", b"[]", b"\x00" * 8, b"\xff" * 8])
                )
                + tail
            )
        else:
            data = head + tail + piece
    return data


def reads(reader: Callable[[Any], object], data: object) -> bool:
    """Whether a reader takes the data. Any error but pmemx's own ends the test."""
    try:
        reader(data)
    except PmemxError:
        return False
    return True


# -------------------------------------------------------------------------------------------------------- changed bytes


@given(mutations(ENCODED))
@MANY
def test_changed_bytes_are_a_manifest_or_corrupt(data: bytes) -> None:
    try:
        manifest = Manifest.decode(data)
    except CorruptBlock:
        return
    # What is read can be kept: the same manifest comes back, so that nothing half understood enters a bank.
    assert Manifest.decode(manifest.encode()) == manifest
    reads(lambda found: decode(found, WEIGHTS), manifest)


@given(mutations(WEIGHTS))
@MANY
def test_changed_bytes_are_factors_or_corrupt(data: bytes) -> None:
    try:
        block = decode(MANIFEST, data)
    except CorruptBlock:
        return
    assert [tuple(item.A.shape) for item in block.factors.values()] == [(2, 3), (1, 3)]
    assert all(item.A.isfinite().all() and item.B.isfinite().all() for item in block.factors.values())


@given(mutations(PROFILE.encode()))
@MANY
def test_changed_text_is_a_profile_or_refused(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    try:
        profile = Profile.from_json(text)
    except (CorruptBlock, ConfigError):
        return
    assert Profile.from_json(profile.to_json()) == profile


# ------------------------------------------------------------------------------------------------------- changed values


def places(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def with_value(value: Any, path: tuple[str | int, ...], new: object) -> Any:
    if not path:
        return new
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[path[0]] = with_value(value[path[0]], path[1:], new)
    return changed


@given(st.sampled_from(places(json.loads(ENCODED))), JSON)
@MANY
def test_any_value_in_any_place_of_a_manifest_is_read_or_corrupt(path: tuple[str | int, ...], new: object) -> None:
    data = json.dumps(with_value(json.loads(ENCODED), path, new)).encode()
    try:
        manifest = Manifest.decode(data)
    except CorruptBlock:
        return
    reads(Manifest.encode, manifest)
    reads(lambda found: decode(found, WEIGHTS), manifest)


@given(st.sampled_from(places(json.loads(PROFILE))), JSON)
@MANY
def test_any_value_in_any_place_of_a_profile_is_read_or_refused(path: tuple[str | int, ...], new: object) -> None:
    reads(Profile.from_json, json.dumps(with_value(json.loads(PROFILE), path, new)))


@given(st.sampled_from(places(card_values(sound().card))[1:]), JSON)
@MANY
def test_any_value_in_any_place_of_a_card_is_read_or_refused(path: tuple[str | int, ...], new: object) -> None:
    reads(card_from, with_value(card_values(sound().card), path, new))


@given(JSON)
@MANY
def test_any_json_at_all_is_refused_or_read(value: object) -> None:
    text = json.dumps(value)
    assert not reads(Manifest.decode, text.encode())
    reads(Profile.from_json, text)


# --------------------------------------------------------------------------------------------------- crafted safetensors


def tensors(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


A0, B0 = key("model.layers.0.q_proj", "A"), key("model.layers.0.q_proj", "B")
CRAFTED = {
    "nothing": b"",
    "seven bytes": b"\x00" * 7,
    "no header": struct.pack("<Q", 0),
    "a header of 100 MB and one byte": struct.pack("<Q", 100_000_001) + b"{}" + b" " * 64,
    "a header of 2**63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header of 2**64 - 1 bytes": struct.pack("<Q", 2**64 - 1) + b"{}",
    "a header that is longer than the file": struct.pack("<Q", 100) + b"{}",
    "no JSON": tensors(b"{,}"),
    "a list": tensors(b"[]"),
    "text that is no UTF-8": tensors(b'{"\xff":1}'),
    "deep JSON": tensors(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "a deep list": tensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "overlapping offsets": tensors({A0: entry(0, 24, [2, 3]), B0: entry(0, 32, [4, 2])}, b"\x00" * 32),
    "offsets that overlap in part": tensors({A0: entry(0, 24, [2, 3]), B0: entry(20, 52, [4, 2])}, b"\x00" * 52),
    "a hole": tensors({A0: entry(0, 24, [2, 3]), B0: entry(32, 64, [4, 2])}, b"\x00" * 64),
    "a hole at the start": tensors({A0: entry(8, 32, [2, 3])}, b"\x00" * 32),
    "bytes behind the last tensor": tensors({A0: entry(0, 24, [2, 3])}, b"\x00" * 25),
    "a byte too few": tensors({A0: entry(0, 24, [2, 3])}, b"\x00" * 23),
    "an end before its beginning": tensors({A0: entry(24, 0, [2, 3])}, b"\x00" * 24),
    "negative offsets": tensors({A0: entry(-24, 0, [2, 3])}, b"\x00" * 24),
    "a shape that does not fit": tensors({A0: entry(0, 24, [2, 4])}, b"\x00" * 24),
    "a negative shape": tensors({A0: entry(0, 24, [-2, -3])}, b"\x00" * 24),
    "a shape beyond all integers": tensors({A0: entry(0, 0, [2**62, 2**62, 0])}),
    "an empty tensor of 2**63 columns": tensors({A0: entry(0, 0, [0, 2**63])}),
    "an empty tensor of a shape that overflows": tensors({A0: entry(0, 0, [0, 2**62, 8])}),
    "a type that is none": tensors({A0: entry(0, 24, [2, 3], "F33")}, b"\x00" * 24),
    "a type that torch has not": tensors({A0: entry(0, 3, [2, 3], "F4")}, b"\x00" * 3),
    "metadata that is no text": tensors({"__metadata__": {"format": 3}, A0: entry(0, 24, [2, 3])}, b"\x00" * 24),
    "no tensor at all": tensors({}),
    "only metadata": tensors({"__metadata__": {"format": "pt"}}),
    "a path for a name": tensors({"../../etc/passwd": entry(0, 4, [1])}, b"\x00" * 4),
    "one name twice": tensors(
        b'{"%s":%s,"%s":%s}'
        % (A0.encode(), json.dumps(entry(0, 24, [2, 3])).encode(), A0.encode(), json.dumps(entry(0, 24, [2, 3])).encode()),
        b"\x00" * 24,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_file_is_corrupt(name: str) -> None:
    reads(unpack, CRAFTED[name])
    with pytest.raises(CorruptBlock):
        decode(MANIFEST, CRAFTED[name])


def zipped() -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data.pkl", pickle.dumps({"a": 1}))
    return archive.getvalue()


def test_a_file_that_is_a_zip_as_well_is_corrupt() -> None:
    behind = WEIGHTS + zipped()
    assert zipfile.is_zipfile(io.BytesIO(behind))
    for polyglot in (behind, zipped() + WEIGHTS, zipped()):
        with pytest.raises(CorruptBlock, match="not a whole safetensors file"):
            decode(MANIFEST, polyglot)
    inside = tensors({"x": entry(0, len(zipped()), [len(zipped())], "U8")}, zipped())
    with pytest.raises(CorruptBlock, match="differ in x"):
        decode(MANIFEST, inside)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.file,)


def test_a_pickle_is_refused_by_every_reader_and_opened_by_none(tmp_path: Path) -> None:
    plain = pickle.dumps(Bomb(tmp_path / "opened"))
    saved = io.BytesIO()
    torch.save(Bomb(tmp_path / "opened"), saved)
    for bomb in (plain, saved.getvalue()):
        for reader in (Manifest.decode, unpack, lambda data: Profile.from_json(data.decode("latin-1"))):
            with pytest.raises(CorruptBlock):
                reader(bomb)
    assert not (tmp_path / "opened").exists()


# ------------------------------------------------------------------------------------------------------ crafted JSON


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "3", '"legal"', "{}", '{"name":"x"}', '{"name":"x","weights":[],"versions":{}}',
        '{"name":"x","weights":{"a":"1;"},"versions":{}}', '{"name":"x","weights":{"a":null},"versions":{}}',
        '{"name":"x","weights":{"a":[1]},"versions":{}}', '{"name":3,"weights":{},"versions":{}}',
        '{"name":"x","weights":{},"versions":[]}', '{"name":"x","weights":{"a":1},"versions":{"a":3}}',
        '{"name":"x","weights":{"a":NaN},"versions":{}}', '{"name":"x","weights":{"a":1e999},"versions":{}}',
        '{"name":"x","weights":{"a":1' + "0" * 400 + '},"versions":{}}', "[" * 100_000, '{"name":' * 100_000,
        '{"name":"x","weights":{"a":1' + "0" * 5000 + '},"versions":{}}', '{"name":"x","weights":{},"versions":{"a":"1"}}',
    ],
)  # fmt: skip
def test_a_profile_that_is_none_is_refused(text: str) -> None:
    with pytest.raises((CorruptBlock, ConfigError)) as caught:
        Profile.from_json(text)
    assert len(str(caught.value)) < 500


def test_a_key_that_stands_twice_means_its_last_and_nothing_else() -> None:
    twice = ENCODED.replace(b'"scale":0.5', b'"scale":0.5,"scale":7.0')
    assert Manifest.decode(twice).sites[0].scale == 7.0
    # Both readings have one digest, but not that of the manifest as pmemx writes it.
    assert hashlib.sha256(twice).hexdigest() != Manifest.decode(twice).digest


# ------------------------------------------------------------------------------------------------------ in a bank


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> GovernedStore:
    store = GovernedStore(tmp_path_factory.mktemp("bank"), principal="ann")
    store.put(sound())
    return store


@pytest.mark.parametrize("part", ["manifest", "weights"])
@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_changed_object_never_loads(filled: GovernedStore, part: str, data: st.DataObject) -> None:
    objects = filled.bank.objects
    assert isinstance(objects, LocalObjects)
    digest, whole = (MANIFEST.digest, ENCODED) if part == "manifest" else (MANIFEST.weights, WEIGHTS)
    changed = data.draw(mutations(whole).filter(lambda mutated: mutated != whole))
    objects.file(digest).write_bytes(changed)
    with pytest.raises(CorruptBlock):
        filled.get("naïve ☃")
    objects.file(digest).write_bytes(whole)
    assert filled.get("naïve ☃").card == sound().card


@given(mutations(ENCODED))
@settings(max_examples=60, deadline=None)
def test_a_changed_manifest_is_committed_whole_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    """What comes from elsewhere, as in a pull, under whatever card it brings along."""
    store = GovernedStore(tmp_path_factory.mktemp("bank"), principal="ann")
    try:
        manifest = Manifest.decode(data)
        made = store.bank.commit(replace(manifest, weights=MANIFEST.weights, size=len(WEIGHTS)), WEIGHTS)
    except PmemxError:
        assert store.verify() == ()
        assert store.names() == ()
        return
    assert store.bank.manifest(made.digest).card == manifest.card
    assert all("tensors and manifest differ" in line or "NaN" in line for line in store.verify())


@pytest.mark.parametrize(
    "text", ["\x00", "' OR 1=1 --", "\ud800", "\u202e", "a" * 100_000, "{}", "%s%n", "@" * 1000, "/" * 1000]
)
def test_no_text_crashes_a_question(text: str, filled: GovernedStore) -> None:
    bank = filled.bank
    for ask in (bank.find, bank.history, bank.tags, bank.read, lambda name: bank.tag("naïve ☃", name), bank.manifest):
        reads(ask, text)
    reads(lambda name: filled.rollback(name, 1), text)
    assert filled.names() == ("naïve ☃",)
