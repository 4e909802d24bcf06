"""Signatures in the ledger: a version's bytes are vouched for by a key, and by no other."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pmemx.core.errors import AccessDenied, CorruptBlock
from pmemx.store.bank import Bank
from pmemx.store.governed import GovernedStore
from pmemx.store.members import Members, Role
from pmemx.store.migrate import migrate
from pmemx.store.signature import key_id, verify_version
from pmemx.store.signing import Signing, bundles_of
from tests.store.banks import Hands, opened, put


def key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture
def store(tmp_path: Path) -> GovernedStore:
    store = opened(tmp_path, Hands())
    for number in range(8):
        put(store, f"expert {number}", float(number))
    return store


def test_a_version_is_vouched_for_by_the_keys_that_signed_it(store: GovernedStore, tmp_path: Path) -> None:
    signing = Signing(store.bank)
    private, public = key_pair(tmp_path, "ada")
    _, other = key_pair(tmp_path, "bob")
    for number in range(8):
        assert signing.sign(f"expert {number}", private, public) == key_id(public)
    signing.sign("expert 3", private, public)
    for number in range(8):
        signing.verify(f"expert {number}", public)
        assert signing.keys(f"expert {number}") == (key_id(public),)
        with pytest.raises(CorruptBlock, match="was not signed by key"):
            signing.verify(f"expert {number}", other)
    put(store, "expert 3", 99.0)
    with pytest.raises(CorruptBlock, match="signatures of nobody"):
        signing.verify("expert 3", public)
    store.rollback("expert 3", 1)
    signing.verify("expert 3", public)  # the same bytes
    assert store.verify() == ()


def test_a_signature_moved_to_another_version_is_noticed(store: GovernedStore, tmp_path: Path) -> None:
    from sqlalchemy import text

    signing = Signing(store.bank)
    private, public = key_pair(tmp_path, "ada")
    signing.sign("expert 1", private, public)
    with store.bank.transaction() as now:
        now.connection.execute(text("UPDATE signatures SET digest = :d"), {"d": store.find("expert 2").digest})
    with pytest.raises(CorruptBlock):
        signing.verify("expert 2", public)
    assert any("signatures" in finding for finding in store.verify())


def test_two_keys_that_are_no_pair_sign_nothing(store: GovernedStore, tmp_path: Path) -> None:
    private, _ = key_pair(tmp_path, "ada")
    _, public = key_pair(tmp_path, "bob")
    with pytest.raises(CorruptBlock):
        Signing(store.bank).sign("expert 1", private, public)
    assert Signing(store.bank).keys("expert 1") == ()


def test_signing_asks_write_and_the_ledger_holds_no_private_key(store: GovernedStore, tmp_path: Path) -> None:
    private, public = key_pair(tmp_path, "ada")
    Signing(store.bank).sign("expert 1", private, public)
    assert b"PRIVATE KEY" not in b"".join(p.read_bytes() for p in Path(store.path).rglob("*") if p.is_file())
    Members(store.bank).enrol("root", role=Role.OWNER)
    Members(store.bank).enrol("eve", role=Role.READER)
    eve = Signing(replace(store.bank, principal="eve"))
    eve.verify("expert 1", public)
    with pytest.raises(AccessDenied):
        eve.sign("expert 2", private, public)


def test_what_is_signed_is_the_manifest_as_it_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = Bank(shutil.copytree(Path(__file__).parent / "golden" / "format_one", tmp_path / "bank"), principal="root")
    migrate(bank)
    private, public = key_pair(tmp_path, "ada")
    Signing(bank).sign("law@1", private, public)
    found, manifest, weights = bank.read("law@1")
    stored = bank.objects.get(found.version.digest)
    assert hashlib.sha256(stored).hexdigest() == found.version.digest != manifest.digest
    with bank.ledger.reading() as now:
        (bundle,) = bundles_of(now, found.version.digest).values()
    verify_version(stored, weights, bundle, public)
    # A later pmemx encodes otherwise.
    monkeypatch.setattr("pmemx.store.manifest.FORMAT", 3)
    Signing(bank).verify("law@1", public)
