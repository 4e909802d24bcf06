"""The store that stages put blocks into and get them from: a governed bank, with tensors."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pmemx.core.block import CapabilityBlock
from pmemx.core.card import Version
from pmemx.core.clock import Clock, system_clock
from pmemx.core.errors import CorruptBlock, IncompatibleBlock
from pmemx.core.promotion import Promotions
from pmemx.core.store import Store
from pmemx.store.bank import Bank
from pmemx.store.block_bytes import decode, encode
from pmemx.store.evaluations import Evaluations
from pmemx.store.leaving import leave
from pmemx.store.ledger import NOW
from pmemx.store.references import SHARED
from pmemx.store.verification import findings


@dataclass(frozen=True)
class GovernedStore(Store):
    """Many processes may read and put at once. The place is made by the first put. Settings are those of a Bank.

    The digest of a version is the sha-256 of its manifest, which names the sha-256 of its weights: whoever
    knows the digest knows every byte, the scales included.
    """

    path: Path | str
    database: str = ""
    namespace: str = SHARED
    principal: str = ""
    token: str = field(default="", repr=False)
    clock: Clock = system_clock
    moment: int = NOW
    cold: Path | str = ""

    @cached_property
    def bank(self) -> Bank:
        """The bank without tensors: everything that is not about weights is asked there."""
        return Bank(
            self.path, self.database, self.namespace, self.principal, self.token, self.clock, self.moment, self.cold
        )

    def put(self, block: CapabilityBlock, *, message: str = "", after: int | None = None) -> Version:
        """See Store.put. Raises ConfigError for a name that cannot be shown, StorageError, AccessDenied, IllegalTransition."""
        manifest, weights = encode(block)
        return self.bank.commit(manifest, weights, message=message, after=after)

    def check_writable(self) -> None:
        """See Store.check_writable."""
        self.bank.check_writable()

    def get(self, reference: str, *, base: str | None = None) -> CapabilityBlock:
        """See Store.get."""
        return load(self.bank, reference, base=base)

    def leave(self, references: Iterable[str], *, redacted: bool = False, to: str = "files") -> list[CapabilityBlock]:
        """See Store.leave. Raises IllegalTransition for what is past its TTL."""
        return [one.block for one in leave(self.bank, references, redacted=redacted, to=to)]

    def find(self, reference: str) -> Version:
        """See Store.find."""
        return self.bank.find(reference)

    def names(self) -> tuple[str, ...]:
        """See Store.names."""
        return self.bank.names()

    def history(self, name: str) -> tuple[Version, ...]:
        """See Store.history."""
        return self.bank.history(name)

    def tag(self, reference: str, tag: str, *, reason: str = "") -> Version:
        """See Store.tag."""
        return self.bank.tag(reference, tag, reason=reason)

    def tags(self, name: str) -> dict[str, int]:
        """See Store.tags."""
        return self.bank.tags(name)

    def rollback(self, name: str, number: int, *, message: str = "") -> Version:
        """See Store.rollback."""
        return self.bank.rollback(name, number, message=message)

    @property
    def promotions(self) -> Promotions:
        """See Store.promotions."""
        return Evaluations(self.bank)

    def verify(self) -> tuple[str, ...]:
        """See Store.verify. What a crash leaves, an unfinished file or an object that no version uses, is no finding."""
        return tuple(findings(self.bank, tensors=decode))


def load(bank: Bank, reference: str, *, base: str | None = None) -> CapabilityBlock:
    """The block behind a reference, from a bank of today or of the past. Raises as Store.get does."""
    found = bank.found(reference)
    version, card = found.version, found.version.card
    if base is not None and card.base != base:
        origin = f"was made on base {card.base[:12]} ({card.base_name})" if card.base else "names no base"
        raise IncompatibleBlock(
            f"block {version.name}@{version.number} {origin}, but the model is {base[:12]}; "
            "load its own base, or distil it again on this one"
        )
    manifest, weights = bank.read_found(found)
    try:
        return decode(manifest, weights)
    except CorruptBlock as error:
        raise CorruptBlock(f"weights {manifest.weights[:12]} of {version.name}@{version.number}: {error}") from error
