"""Two tiers of objects: what may be chosen lies in a fast place, what is archived or merged in a cold one."""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import select

from pmemx.core.access import Permission
from pmemx.core.errors import ConfigError
from pmemx.core.lifecycle import State
from pmemx.core.objects import Objects
from pmemx.store import schema
from pmemx.store.bank import Bank
from pmemx.store.tiered_objects import TieredObjects


@dataclass(frozen=True)
class Settled:
    """Digests of the objects that changed their tier."""

    cooled: tuple[str, ...]
    warmed: tuple[str, ...]


def settle(bank: Bank) -> Settled:
    """Move the weights of archived and merged blocks to the bank's cold place, and those of all others back.

    Every object is in its new place before it leaves the old one, and reads look into both. Manifests stay where they
    are. Asks ADMINISTER on the bank; raises ConfigError for a bank without a cold place, CorruptBlock for an object that
    is sound in neither.
    """
    objects = bank.objects
    if not isinstance(objects, TieredObjects):
        raise ConfigError("this bank has one tier; name a second place for what is archived (cold=..., --cold PLACE)")
    with bank.ledger.writing() as now:
        now.require(Permission.ADMINISTER)
        rows, states = schema.versions, schema.states
        query = select(rows.c.weights, states.c.state).join(states, states.c.block == rows.c.block)
        found = now.connection.execute(query.where(states.c.until == schema.NEVER)).all()
        resting = {row.weights for row in found if row.state in (State.ARCHIVED, State.MERGED)}
        awake = {row.weights for row in found if row.state not in (State.ARCHIVED, State.MERGED, State.EXPIRED)}
        cooled = tuple(_move(sorted(resting - awake), objects, objects.warm, objects.cold))
        warmed = tuple(_move(sorted(awake), objects, objects.cold, objects.warm))
    return Settled(cooled, warmed)


def _move(digests: list[str], objects: TieredObjects, source: Objects, target: Objects) -> Iterator[str]:
    for digest in digests:
        if source.has(digest):
            # Also where the target has it: that one may be damaged, and is replaced then.
            target.put(objects.get(digest))
            source.delete(digest)
            yield digest
