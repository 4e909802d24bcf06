"""Blocks that follow a tag of another bank: forward when it moves on, and back when it is rolled back."""

from dataclasses import dataclass

from pmemx.core.access import Permission
from pmemx.core.errors import ConfigError, PmemxError, UnknownBlock
from pmemx.core.event import Action
from pmemx.exchange.source import checked_source, opened
from pmemx.exchange.transfer import Transfer, copy
from pmemx.store import catalogue, exchanged
from pmemx.store.bank import Bank
from pmemx.store.exchanged import Subscription
from pmemx.store.references import Name, check_name, check_namespace, check_tag, split_namespace

__all__ = ["Subscription", "Synced", "subscribe", "subscriptions", "sync", "unsubscribe"]


@dataclass(frozen=True)
class Synced:
    """What a look at one source brought. problem: why nothing could be brought, empty where it could."""

    subscription: Subscription
    transfer: Transfer | None
    problem: str = ""


def subscribe(bank: Bank, source: str, reference: str, *, into: Name | None = None) -> Subscription:
    """Let a block follow "name@tag" of another bank from the next sync on. source: see pmemx.exchange.source.

    into: the block here, by default of the same name in the bank's own namespace; it follows one source at a time. The
    source is asked at once whether it has that tag. Raises ConfigError, UnknownBlock, StorageError, AccessDenied.
    """
    source, (front, tag) = checked_source(source), _with_tag(reference)
    name = into or Name(bank.namespace, split_namespace(front).name)
    check_namespace(name.namespace)
    check_name(name.name)
    with opened(source, bank) as other, other.ledger.reading() as there:
        catalogue.resolve(there, f"{front}@{tag}")
    made = Subscription(name, source, f"{front}@{tag}")
    with bank.ledger.writing() as now:
        now.require(Permission.WRITE, name)
        if made not in exchanged.subscriptions(now):
            now.append(Action.SUBSCRIBE, name, {"source": source, "reference": made.reference})
    return made


def unsubscribe(bank: Bank, name: str) -> None:
    """Let a block follow nothing any more; what was pulled stays. Raises UnknownBlock when it followed nothing."""
    full = bank.full(name)
    with bank.ledger.writing() as now:
        now.require(Permission.WRITE, full)
        if full not in {one.name for one in exchanged.subscriptions(now)}:
            raise UnknownBlock(f"{full} follows no other bank; see the list of subscriptions")
        now.append(Action.UNSUBSCRIBE, full, {})


def subscriptions(bank: Bank) -> tuple[Subscription, ...]:
    """Those of blocks that the principal may read."""
    with bank.ledger.reading() as now:
        found = exchanged.subscriptions(now)
        return tuple(one for one in found if now.identity.decide(Permission.READ, one.name).allowed)


def sync(bank: Bank) -> tuple[Synced, ...]:
    """Look at every source once: pull what a tag moved to, and move the tag here to the same version.

    A tag that moved back in the source moves back here; versions stay. A source that is away, or that gives what cannot be
    taken, is reported with its reason and stops none of the others.
    """
    return tuple(_synced(bank, one) for one in subscriptions(bank))


def _synced(bank: Bank, one: Subscription) -> Synced:
    _, tag = _with_tag(one.reference)
    try:
        with opened(one.source, bank) as source:
            return Synced(one, copy(source, bank, one.reference, into=one.name, tags=(tag,)))
    except PmemxError as error:
        return Synced(one, None, f"{type(error).__name__}: {error}")


def _with_tag(reference: str) -> tuple[str, str]:
    front, at, tag = reference.rpartition("@")
    if not at or not front:
        raise ConfigError(f"a subscription follows a tag, got {reference!r}; write name@tag")
    check_tag(tag)
    return front, tag
