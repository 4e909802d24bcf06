"""The gate through which blocks leave a bank: who may take what, in which form, and the note that they did."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from pmemx.core.access import Permission, Purpose
from pmemx.core.block import CapabilityBlock
from pmemx.core.card import Version
from pmemx.core.card_json import card_values
from pmemx.core.errors import AccessDenied, CorruptBlock, IllegalTransition, StorageError
from pmemx.core.event import Action
from pmemx.core.factor_file import pack
from pmemx.core.lifecycle import State
from pmemx.core.redaction import is_redacted, redact, redact_message
from pmemx.store import catalogue, exchanged
from pmemx.store.bank import Bank
from pmemx.store.block_bytes import decode
from pmemx.store.catalogue import Found
from pmemx.store.ledger import NOW, Transaction, readable_time
from pmemx.store.manifest import Manifest


@dataclass(frozen=True)
class Contents:
    """A version opened and found sound. version: what it is as it leaves."""

    version: Version
    manifest: Manifest
    encoded: bytes
    weights: bytes
    block: CapabilityBlock

    @property
    def digest(self) -> str:
        """Of the manifest's bytes, which an older pmemx may have written: the digest of the version."""
        return hashlib.sha256(self.encoded).hexdigest()


@dataclass(frozen=True)
class Parcel:
    """One version as it leaves: under its own digest, or redacted, hence under another.

    original: what it is in its bank. found: what it becomes.
    """

    original: Found
    found: Found

    def open(self, bank: Bank) -> Contents:
        """Everything of it, from the bank of the original. Raises CorruptBlock, which names the version."""
        with _named(self.original):
            manifest, encoded = _manifest(bank, self.original)
            if self.found.version.digest != self.original.version.digest:
                manifest = replace(manifest, card=self.found.version.card)
                encoded = manifest.encode()
            weights = bank.objects.get(manifest.weights)
            block = decode(manifest, weights)
            # What is no factor, such as a note of the file's own, would pass a redaction unseen.
            if is_redacted(manifest.card) and pack(block.factors) != weights:
                raise CorruptBlock(
                    "its weights hold more than factors, which no redaction can judge; get the block, put it again"
                )
            return Contents(self.found.version, manifest, encoded, weights, block)


def permit(now: Transaction, leaving: Sequence[Found], *, redacted: bool) -> None:
    """Ask, for every version that would leave, whether it may. The last one is the one that was asked for.

    Raises AccessDenied, and IllegalTransition for what is past its TTL.
    """
    asked = leaving[-1]
    for found in leaving:
        card = found.version.card
        purpose = Purpose.LEAVE_REDACTED if redacted or is_redacted(card) else Purpose.LEAVE
        decision = now.identity.decide(Permission.READ, found.full, purpose=purpose, sensitivity=card.sensitivity)
        if not decision.allowed and found is not asked:
            raise AccessDenied(
                f"{now.identity.principal!r} may not take {asked.full}@{asked.version.number} out of the bank, because its "
                f"history goes along and version {found.version.number} may not leave: {decision.reason}; "
                f"or put version {asked.version.number} under another name, whose history begins there"
            )
        decision.enforce()
    expires = exchanged.expiries(now, asked.block)[asked.version.number]
    if expires <= now.now and catalogue.state_of(now, asked.block) is not State.FROZEN:
        raise IllegalTransition(
            f"{asked.full}@{asked.version.number} is past its TTL since {readable_time(expires)} and leaves no more; "
            "commit a version that lives longer"
        )


def parcel(bank: Bank, found: Found, *, redacted: bool) -> Parcel:
    """A version as it leaves. What is redacted already stays as it is. Raises CorruptBlock."""
    version = found.version
    if is_redacted(version.card):
        return Parcel(found, replace(found, message=redact_message(found.message)))
    if not redacted:
        return Parcel(found, found)
    with _named(found):
        manifest, _ = _manifest(bank, found)
    masked = replace(manifest, card=redact(version.card, version.digest))
    becomes = replace(version, card=masked.card, digest=masked.digest)
    return Parcel(found, replace(found, version=becomes, message=redact_message(found.message)))


def note(bank: Bank, leaving: Sequence[Found], *, to: str, redacted: bool, detail: dict[str, Any]) -> None:
    """Write into the bank's journal that versions of one block leave, before they do; asks once more whether they may.

    A bank that knows no principals may lie where nothing can be written; blocks leave that one without a note.
    """
    bank = replace(bank, moment=NOW)
    asked = leaving[-1]
    with bank.ledger.reading() as now:
        governed = now.identity.governed
    digests = [found.version.digest for found in leaving]
    told = {"to": to, "number": asked.version.number, "digests": digests, "redacted": redacted, **detail}
    try:
        with bank.ledger.writing() as now:
            permit(now, leaving, redacted=redacted)
            now.append(Action.EXPORT, asked.full, told)
    except StorageError:
        if governed:
            raise


def leave(bank: Bank, references: Iterable[str], *, redacted: bool = False, to: str = "files") -> list[Contents]:
    """Versions for an export to files, past the gate; each is noted in the journal. to: where, for whoever reads that.

    Nothing is noted unless every one of them may leave and is sound. Raises AccessDenied, CorruptBlock, UnknownBlock,
    IllegalTransition.
    """
    with bank.ledger.reading() as now:
        found = [catalogue.resolve(now, reference) for reference in references]
        for one in found:
            permit(now, [one], redacted=redacted)
    leaving = [parcel(bank, one, redacted=redacted).open(bank) for one in found]
    for one in found:
        note(bank, [one], to=to, redacted=redacted, detail={})
    return leaving


def _manifest(bank: Bank, found: Found) -> tuple[Manifest, bytes]:
    encoded = bank.objects.get(found.version.digest)
    manifest = Manifest.decode(encoded)
    # What may leave was decided by the ledger's card.
    if manifest.weights != found.weights or card_values(manifest.card) != card_values(found.version.card):
        raise CorruptBlock("the ledger tells of another card or other weights than the manifest; see pmemx bank verify")
    return manifest, encoded


@contextmanager
def _named(found: Found) -> Iterator[None]:
    try:
        yield
    except CorruptBlock as error:
        raise CorruptBlock(f"{found.full}@{found.version.number} ({found.version.digest[:12]}): {error}") from error
