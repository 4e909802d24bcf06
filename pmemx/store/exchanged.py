"""What an exchange asks of a ledger: what goes with a block's versions, and which blocks follow another bank."""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import select

from pmemx.core.errors import CorruptBlock
from pmemx.core.event import Action, Event
from pmemx.store import schema
from pmemx.store.ledger import Transaction, to_event
from pmemx.store.references import Name


@dataclass(frozen=True)
class Signature:
    """A signature of a version, by the id of its key."""

    digest: str
    key: str
    bundle: str


@dataclass(frozen=True)
class Subscription:
    """A block that follows a tag of another bank. name: here. source, reference: where, and "name@tag" there."""

    name: Name
    source: str
    reference: str


def bank_id(now: Transaction) -> str:
    """The bank's own id, empty before its first entry."""
    return now.connection.execute(select(schema.bank.c.id)).scalar() or ""


def uid_of(now: Transaction, block: int) -> str:
    """The id that a block keeps from its first commit on."""
    return now.connection.execute(select(schema.blocks.c.uid).where(schema.blocks.c.id == block)).scalar_one()


def expiries(now: Transaction, block: int) -> dict[int, int]:
    """When each version of a block expires, in microseconds since 1970, far away for never."""
    rows = schema.versions
    query = select(rows.c.number, rows.c.expires).where(rows.c.block == block)
    return {row.number: row.expires for row in now.connection.execute(query)}


def evaluations(now: Transaction, name: Name) -> list[Event]:
    """The entries that recorded scores of a block, oldest first. Raises CorruptBlock for one that cannot be read."""
    rows = schema.journal
    query = select(rows).where(
        rows.c.namespace == name.namespace,
        rows.c.name == name.name,
        rows.c.action == Action.EVALUATE.value,
        rows.c.seq <= now.moment,
    )
    try:
        return [to_event(row) for row in now.connection.execute(query.order_by(rows.c.seq))]
    except (ValueError, RecursionError) as error:
        raise CorruptBlock(f"the journal of {name} holds what is no entry ({error!s:.100}); verify the bank") from error


def signatures(now: Transaction, digests: Iterable[str]) -> list[Signature]:
    """Signatures of versions, in the order of the digests, then of the signing."""
    rows = schema.signatures
    found = []
    for digest in dict.fromkeys(digests):
        query = select(rows).where(rows.c.digest == digest, rows.c.seq <= now.moment).order_by(rows.c.seq)
        found += [Signature(row.digest, row.key, row.bundle) for row in now.connection.execute(query)]
    return found


def subscriptions(now: Transaction) -> list[Subscription]:
    """Every block that follows another bank, by namespace and name."""
    rows = schema.subscriptions
    query = select(rows).where(rows.c.since <= now.moment, rows.c.until > now.moment)
    found = now.connection.execute(query.order_by(rows.c.namespace, rows.c.name))
    return [Subscription(Name(row.namespace, row.name), row.source, row.reference) for row in found]
