"""Signatures over versions and exports: whatever is changed is noticed, and the standard client agrees."""

import base64
import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.errors import ConfigError, CorruptBlock, StorageError
from pmemx.core.extras import install
from pmemx.core.factor_file import pack
from pmemx.export.peft import PeftExport
from pmemx.store.manifest import Manifest, Site
from pmemx.store.signature import (
    PASSWORD,
    SIGNATURE,
    key_id,
    sign_export,
    sign_version,
    verify_export,
    verify_version,
)

DOMAINS = ("law", "medicine", "physics", "history", "chess", "botany", "music", "cooking")
SITES = {"model.layers.10.mlp.up_proj": (3, 2.0), "model.layers.2.self_attn.q_proj": (1, 0.1)}


@dataclass(frozen=True)
class Keys:
    private: Path
    public: Path


def write_keys(folder: Path, key: Any, password: str = "") -> Keys:
    folder.mkdir()
    encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    keys = Keys(folder / "key.pem", folder / "key.pub")
    keys.private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    keys.public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return keys


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return write_keys(tmp_path_factory.mktemp("owner") / "keys", ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return write_keys(tmp_path_factory.mktemp("stranger") / "keys", ec.generate_private_key(ec.SECP256R1()))


def blocks() -> list[CapabilityBlock]:
    generator = torch.Generator().manual_seed(0)
    return [
        CapabilityBlock(
            BlockCard(domain, domain, "b" * 64, base_name="tiny"),
            {
                site: LoraFactors(
                    torch.randn(rank, 5, generator=generator), torch.randn(4, rank, generator=generator), scale
                )
                for site, (rank, scale) in SITES.items()
            },
        )
        for domain in DOMAINS
    ]


def version(block: CapabilityBlock) -> tuple[bytes, bytes]:
    """Manifest and weights, as a store keeps them."""
    weights = pack(block.factors)
    sites = tuple(Site(name, f.rank, f.A.shape[1], f.B.shape[0], f.scale) for name, f in block.factors.items())
    return Manifest(block.card, sites, hashlib.sha256(weights).hexdigest(), len(weights)).encode(), weights


@pytest.fixture(scope="module")
def versions() -> list[tuple[bytes, bytes]]:
    return [version(block) for block in blocks()]


@pytest.fixture(params=[False, True], ids=["plain", "portable"])
def export(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    PeftExport(portable=request.param).export(blocks(), folder)
    return folder


def statement(bundle: str) -> dict[str, Any]:
    return json.loads(base64.b64decode(json.loads(bundle)["dsseEnvelope"]["payload"]))


def client(*arguments: str | Path) -> int:
    """The exit status of the standard client."""
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False).returncode


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# Versions


def test_each_bundle_holds_for_its_own_version_and_no_other(versions: list[tuple[bytes, bytes]], owner: Keys) -> None:
    bundles = [sign_version(*pair, owner.private) for pair in versions]
    holds = {(row, column) for row in range(8) for column in range(8) if sound(versions[row], bundles[column], owner)}
    assert holds == {(number, number) for number in range(8)}


def sound(pair: tuple[bytes, bytes], bundle: str, keys: Keys) -> bool:
    try:
        verify_version(*pair, bundle, keys.public)
    except CorruptBlock:
        return False
    return True


@pytest.mark.parametrize("change", [flipped, lambda data: data[:-1], lambda data: data + b"\0", lambda data: b""])
def test_a_changed_file_of_a_version_is_named(
    versions: list[tuple[bytes, bytes]], owner: Keys, change: Callable[[bytes], bytes]
) -> None:
    manifest, weights = versions[0]
    bundle = sign_version(manifest, weights, owner.private)
    with pytest.raises(CorruptBlock, match=r"Hash mismatch for 'manifest\.json'[\"']\]; do not use it"):
        verify_version(change(manifest), weights, bundle, owner.public)
    with pytest.raises(CorruptBlock, match=r"Hash mismatch for 'adapter_model\.safetensors'[\"']\]; do not use it"):
        verify_version(manifest, change(weights), bundle, owner.public)


def test_weights_of_another_version_are_noticed(versions: list[tuple[bytes, bytes]], owner: Keys) -> None:
    bundle = sign_version(*versions[0], owner.private)
    with pytest.raises(CorruptBlock, match="Hash mismatch for 'adapter_model"):
        verify_version(versions[0][0], versions[1][1], bundle, owner.public)


def test_the_statement_by_hand(owner: Keys) -> None:
    signed = statement(sign_version(b"{}", b"weights", owner.private))
    assert {item["name"]: item["digest"] for item in signed["predicate"]["resources"]} == {
        "manifest.json": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "adapter_model.safetensors": hashlib.sha256(b"weights").hexdigest(),
    }
    assert signed["subject"][0]["name"] == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_another_key_is_noticed_even_where_the_bundle_claims_this_one(
    versions: list[tuple[bytes, bytes]], owner: Keys, stranger: Keys
) -> None:
    bundle = sign_version(*versions[0], stranger.private)
    with pytest.raises(CorruptBlock, match="does not match the provided public key"):
        verify_version(*versions[0], bundle, owner.public)
    material = json.loads(sign_version(*versions[0], owner.private))["verificationMaterial"]
    claiming = json.dumps(json.loads(bundle) | {"verificationMaterial": material})
    with pytest.raises(CorruptBlock, match="signed by another key than"):
        verify_version(*versions[0], claiming, owner.public)


def test_a_statement_made_to_fit_other_weights_is_noticed(versions: list[tuple[bytes, bytes]], owner: Keys) -> None:
    bundle = json.loads(sign_version(*versions[0], owner.private))
    other = json.loads(sign_version(*versions[1], owner.private))
    bundle["dsseEnvelope"]["payload"] = other["dsseEnvelope"]["payload"]
    with pytest.raises(CorruptBlock, match=r"signed by another key than .* or edited afterwards"):
        verify_version(*versions[1], json.dumps(bundle), owner.public)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", "1", '"x"', "[" * 10**5, '{"a":' * 10**5, "\0", "\ud800", "-----BEGIN PUBLIC KEY-----"],
)
def test_what_is_no_bundle_is_refused(versions: list[tuple[bytes, bytes]], owner: Keys, text: str) -> None:
    with pytest.raises(CorruptBlock, match=r"does not hold for version [0-9a-f]{12}: it is no bundle"):
        verify_version(*versions[0], text, owner.public)


def test_a_bundle_with_a_certificate_is_no_bundle_of_ours(versions: list[tuple[bytes, bytes]], owner: Keys) -> None:
    bundle = json.loads(sign_version(*versions[0], owner.private))
    bundle["verificationMaterial"] = {"certificate": {"rawBytes": "AAAA"}, "tlogEntries": []}
    with pytest.raises(CorruptBlock, match="it is no bundle of the kind that pmemx writes"):
        verify_version(*versions[0], json.dumps(bundle), owner.public)


def places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON value, the value itself left out."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield (*path, name)
        yield from places(item, (*path, name))


def test_a_bundle_changed_anywhere_is_refused_or_still_signs_the_same(
    versions: list[tuple[bytes, bytes]], owner: Keys
) -> None:
    text = sign_version(*versions[0], owner.private)
    accepted = set()
    for place in places(json.loads(text)):
        for junk in (None, 1, "", "x", [], {}, {"a": [1]}, "A" * 99):
            bundle = inside = json.loads(text)
            for name in place[:-1]:
                inside = inside[name]
            inside[place[-1]] = junk
            if sound(versions[0], json.dumps(bundle), owner):
                accepted.add(place)
            assert not sound(versions[1], json.dumps(bundle), owner)
    # What the envelope does not sign, and nobody relies on: which key to try, and entries of a public log.
    assert accepted <= {
        ("verificationMaterial", "publicKey"),
        ("verificationMaterial", "publicKey", "hint"),
        ("verificationMaterial", "tlogEntries"),
        ("dsseEnvelope", "signatures", 0, "keyid"),
    }


# Exports


def damages(file: Path, aside: Path) -> dict[str, Callable[[], object]]:
    data = file.read_bytes()
    return {
        "flip": lambda: file.write_bytes(flipped(data)),
        "truncate": lambda: file.write_bytes(data[:-1]),
        "append": lambda: file.write_bytes(data + b" "),
        "remove": file.unlink,
        "rename": lambda: file.rename(file.with_name(".gitignore")),
        "link to the same bytes": lambda: (file.rename(aside), file.symlink_to(aside)),
        "folder of that name": lambda: (file.unlink(), file.mkdir()),
    }


def test_a_change_to_any_file_of_an_export_is_noticed(export: Path, owner: Keys, tmp_path: Path) -> None:
    sign_export(export, owner.private)
    intact = tmp_path / "intact"
    shutil.copytree(export, intact)
    signed = files(export)
    assert len(signed) == 8 * 3 + 2  # config, weights, passport of each block; index and signature
    missed = []
    for file in signed:
        for name, damage in damages(file, tmp_path / "aside").items():
            if file.name == SIGNATURE and name in ("append", "link to the same bytes"):
                continue  # it is the same statement still
            damage()
            try:
                verify_export(export, owner.public)
            except CorruptBlock:
                pass
            else:
                missed.append((file.name, name))
            shutil.rmtree(file.parent)
            shutil.copytree(intact / file.parent.relative_to(export), file.parent)
    assert missed == []
    verify_export(export, owner.public)


@pytest.mark.parametrize("name", ["extra.bin", ".gitattributes", ".git/config", "law/model.sig", "model.sig.bak"])
def test_a_file_added_to_an_export_is_noticed(export: Path, owner: Keys, name: str) -> None:
    sign_export(export, owner.private)
    added = export / name
    added.parent.mkdir(exist_ok=True)
    added.write_bytes(b"")
    with pytest.raises(CorruptBlock, match=f"Extra files found in model 'export': {name}"):
        verify_export(export, owner.public)


def test_a_link_added_to_an_export_is_noticed_and_never_signed(export: Path, owner: Keys) -> None:
    sign_export(export, owner.private)
    (export / "link").symlink_to(export / "index.json")
    with pytest.raises(CorruptBlock, match="it is a symlink"):
        verify_export(export, owner.public)
    with pytest.raises(CorruptBlock, match=r"cannot be signed: .* it is a symlink"):
        sign_export(export, owner.private)


def test_the_signature_of_another_export_is_noticed(tmp_path: Path, owner: Keys) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder, block in zip(folders, blocks(), strict=False):
        PeftExport().export([block], folder)
        sign_export(folder, owner.private)
    one, other = (folder / SIGNATURE for folder in folders)
    one.write_bytes(other.read_bytes())
    with pytest.raises(CorruptBlock, match="Missing files in model 'one': medicine"):
        verify_export(folders[0], owner.public)
    verify_export(folders[1], owner.public)


def test_an_export_may_be_moved_and_signed_again(export: Path, owner: Keys, stranger: Keys) -> None:
    sign_export(export, stranger.private)
    assert sign_export(export, owner.private) == export / SIGNATURE
    moved = export.rename(export.with_name("moved"))
    verify_export(moved, owner.public)
    with pytest.raises(CorruptBlock, match="does not match the provided public key"):
        verify_export(moved, stranger.public)


def test_folders_signed_before_the_whole_can_travel_alone(export: Path, owner: Keys) -> None:
    adapters = sorted(path for path in export.iterdir() if path.is_dir())
    for folder in [*adapters, export]:
        sign_export(folder, owner.private)
    for folder in [*adapters, export]:
        verify_export(folder, owner.public)


def test_what_was_never_signed_or_holds_nothing_is_refused(export: Path, owner: Keys, tmp_path: Path) -> None:
    with pytest.raises(CorruptBlock, match=r"has no model\.sig to read"):
        verify_export(export, owner.public)
    for empty in (tmp_path / "missing", export / "index.json", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(CorruptBlock, match="holds no file to sign"):
            sign_export(empty, owner.private)


# The standard client as the reference


def test_the_standard_client_verifies_an_export(export: Path, owner: Keys, stranger: Keys) -> None:
    signature = sign_export(export, owner.private)
    verify = ("verify", "key", export, "--signature", signature, "--public_key")
    assert client(*verify, owner.public) == 0
    assert client(*verify, stranger.public) == 1
    weights = files(export)[1]
    weights.write_bytes(flipped(weights.read_bytes()))
    assert client(*verify, owner.public) == 1


def test_the_standard_client_verifies_a_version(
    versions: list[tuple[bytes, bytes]], owner: Keys, tmp_path: Path
) -> None:
    folder, signature = tmp_path / "version", tmp_path / SIGNATURE
    folder.mkdir()
    (folder / "manifest.json").write_bytes(versions[0][0])
    (folder / "adapter_model.safetensors").write_bytes(versions[0][1])
    signature.write_text(sign_version(*versions[0], owner.private), encoding="utf-8")
    verify = ("verify", "key", folder, "--signature", signature, "--public_key", owner.public)
    assert client(*verify) == 0
    (folder / "manifest.json").write_bytes(versions[1][0])
    assert client(*verify) == 1


@pytest.mark.parametrize("export", [False], indirect=True)
def test_what_the_standard_client_signs_is_verified_but_for_what_it_leaves_out(export: Path, owner: Keys) -> None:
    signature, ignored = export / SIGNATURE, export / "index.json"
    sign = ("sign", "key", export, "--signature", signature, "--private_key", owner.private)
    assert client(*sign) == 0
    verify_export(export, owner.public)
    (export / ".gitattributes").write_bytes(b"")
    assert client("verify", "key", export, "--signature", signature, "--public_key", owner.public) == 0
    with pytest.raises(CorruptBlock, match=r"Extra files found in model 'export': \.gitattributes"):
        verify_export(export, owner.public)
    (export / ".gitattributes").unlink()
    assert client(*sign, "--ignore-paths", ignored) == 0
    with pytest.raises(CorruptBlock, match=r"Extra files found in model 'export': index\.json"):
        verify_export(export, owner.public)


# Keys


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_each_supported_curve_signs(
    versions: list[tuple[bytes, bytes]], tmp_path: Path, curve: ec.EllipticCurve
) -> None:
    keys = write_keys(tmp_path / "keys", ec.generate_private_key(curve))
    bundle = sign_version(*versions[0], keys.private)
    verify_version(*versions[0], bundle, keys.public)
    assert not sound(versions[1], bundle, keys)


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP256K1()),
    ],
    ids=["rsa", "ed25519", "secp256k1"],
)
def test_other_keys_are_refused(tmp_path: Path, owner: Keys, key: Any) -> None:
    keys = write_keys(tmp_path / "keys", key)
    bundle = sign_version(b"{}", b"", owner.private)
    for use in (
        lambda: sign_version(b"{}", b"", keys.private),
        lambda: verify_version(b"{}", b"", bundle, keys.public),
        lambda: key_id(keys.public),
    ):
        with pytest.raises(ConfigError, match="elliptic-curve key on P-256, P-384 or P-521"):
            use()


def test_a_file_that_holds_no_such_key_is_refused(tmp_path: Path, owner: Keys) -> None:
    bundle = sign_version(b"{}", b"", owner.private)
    text = tmp_path / "text"
    text.write_text("no key", encoding="utf-8")
    for private, public in [(tmp_path / "missing", tmp_path / "missing"), (text, text), (owner.public, owner.private)]:
        with pytest.raises(ConfigError, match=f"private key {private} cannot be used"):
            sign_version(b"{}", b"", private)
        with pytest.raises(ConfigError, match=f"public key {public} cannot be used"):
            verify_version(b"{}", b"", bundle, public)
        with pytest.raises(ConfigError, match=f"public key {public} cannot be used"):
            key_id(public)


def test_a_password_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Keys) -> None:
    keys = write_keys(tmp_path / "keys", ec.generate_private_key(ec.SECP256R1()), password="pässword")
    monkeypatch.delenv(PASSWORD, raising=False)
    with pytest.raises(ConfigError, match=r"private key is encrypted.*PMEMX_KEY_PASSWORD"):
        sign_version(b"{}", b"", keys.private)
    monkeypatch.setenv(PASSWORD, "wrong")
    with pytest.raises(ConfigError, match="Incorrect password") as caught:
        sign_version(b"{}", b"", keys.private)
    assert "wrong" not in str(caught.value)
    monkeypatch.setenv(PASSWORD, "pässword")
    verify_version(b"{}", b"", sign_version(b"{}", b"", keys.private), keys.public)
    with pytest.raises(ConfigError, match="private key is not encrypted"):
        sign_version(b"{}", b"", owner.private)


def test_the_id_of_a_key_is_the_digest_of_its_der(owner: Keys, stranger: Keys, tmp_path: Path) -> None:
    lines = owner.public.read_text(encoding="utf-8").splitlines()
    assert key_id(owner.public) == hashlib.sha256(base64.b64decode("".join(lines[1:-1]))).hexdigest()
    assert key_id(owner.public) != key_id(stranger.public)
    windows = tmp_path / "key.pub"
    windows.write_bytes(owner.public.read_bytes().replace(b"\n", b"\r\n"))
    assert key_id(windows) == key_id(owner.public)


# The library


def test_no_network_is_touched(owner: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    verify_version(b"{}", b"", sign_version(b"{}", b"", owner.private), owner.public)


def test_a_disk_that_refuses_is_named(export: Path, owner: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    sign_export(export, owner.private)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("model_signing.hashing.Config.hash", refuse)
    for use in (lambda: sign_export(export, owner.private), lambda: verify_export(export, owner.public)):
        with pytest.raises(StorageError, match=r"export cannot be signed or verified, .* Permission denied"):
            use()


def test_a_missing_extra_is_named(owner: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = sign_version(b"{}", b"", owner.private)
    monkeypatch.setitem(sys.modules, "model_signing", None)
    for use in (
        lambda: sign_version(b"{}", b"", owner.private),
        lambda: verify_version(b"{}", b"", bundle, owner.public),
        lambda: key_id(owner.public),
    ):
        with pytest.raises(ConfigError, match=re.escape(f"run: {install('sign')}")):
            use()


def test_importing_the_module_loads_neither_the_library_nor_torch() -> None:
    code = "import sys, pmemx.store.signature; print(*{'torch', 'model_signing', 'cryptography'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "\n"
