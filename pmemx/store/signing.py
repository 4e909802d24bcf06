"""Signatures of versions in a bank: made with a key that stays with its owner, kept in the ledger, checked by anyone."""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from pmemx.core.access import Permission
from pmemx.core.errors import CorruptBlock
from pmemx.core.event import Action
from pmemx.store import catalogue, schema
from pmemx.store.bank import Bank
from pmemx.store.catalogue import Found
from pmemx.store.ledger import Transaction
from pmemx.store.signature import key_id, sign_version, verify_version


@dataclass(frozen=True)
class Signing:
    """Signs the manifest (hence the card) and the weights of versions. Asks WRITE to sign and READ to verify."""

    bank: Bank

    def sign(self, reference: str, private_key: Path, public_key: Path) -> str:
        """Keep a signature of a version; returns the id of the key. What a key has signed already is not signed again.

        Raises CorruptBlock when the two keys are no pair.
        """
        found, manifest, weights = self._read(reference)
        bundle = sign_version(manifest, weights, private_key)
        verify_version(manifest, weights, bundle, public_key)
        key = key_id(public_key)
        with self.bank.ledger.writing() as now:
            now.require(Permission.WRITE, found.full, sensitivity=found.version.card.sensitivity)
            if key not in bundles_of(now, found.version.digest):
                detail = {"number": found.version.number, "digest": found.version.digest, "key": key, "bundle": bundle}
                now.append(Action.SIGN, found.full, detail)
        return key

    def keys(self, reference: str) -> tuple[str, ...]:
        """Ids of the keys that signed a version, sorted."""
        with self.bank.ledger.reading() as now:
            return tuple(sorted(bundles_of(now, catalogue.resolve(now, reference).version.digest)))

    def verify(self, reference: str, public_key: Path) -> None:
        """Raises CorruptBlock unless that key signed exactly these bytes."""
        found, manifest, weights = self._read(reference)
        with self.bank.ledger.reading() as now:
            bundles = bundles_of(now, found.version.digest)
        key = key_id(public_key)
        if key not in bundles:
            raise CorruptBlock(
                f"{self.bank.reference(found.version)} was not signed by key {key[:12]}; "
                f"it has signatures of {', '.join(sorted(k[:12] for k in bundles)) or 'nobody'}"
            )
        verify_version(manifest, weights, bundles[key], public_key)

    def _read(self, reference: str) -> tuple[Found, bytes, bytes]:
        """A version, its manifest and its weights as they are stored: an older pmemx may have encoded them."""
        found, _, weights = self.bank.read(reference)
        return found, self.bank.objects.get(found.version.digest), weights


def bundles_of(now: Transaction, digest: str) -> dict[str, str]:
    """Signatures of the version with that digest, by the id of the key."""
    rows = schema.signatures
    query = select(rows.c.key, rows.c.bundle).where(rows.c.digest == digest, rows.c.seq <= now.moment)
    return {row.key: row.bundle for row in now.connection.execute(query)}
