"""The collector: deletes the bytes that nobody can reach any more, and nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, select

from pmemx.core.access import Permission
from pmemx.core.event import Action
from pmemx.store import catalogue, schema
from pmemx.store.bank import Bank
from pmemx.store.ledger import NOW, Transaction

DAY = 86_400.0


@dataclass(frozen=True)
class Garbage:
    """One file to delete: an object by its sha-256, or an unfinished write by its name."""

    name: str
    size: int
    reason: str


@dataclass(frozen=True)
class Collector:
    """Finds objects of lives that expired, which no living version and no snapshot shows, and what crashed writers left.

    grace: seconds for which an object that no version names is left alone: somebody may be about to commit it.
    """

    bank: Bank
    grace: float = DAY

    def collect(self, *, dry_run: bool = True) -> tuple[Garbage, ...]:
        """What is deleted, or with dry_run what would be. Asks DELETE on the bank.

        No commit can happen meanwhile; one that waits puts its objects again where they were taken.
        """
        if dry_run:
            with self.bank.ledger.reading() as now:
                now.require(Permission.DELETE)
                return tuple(self._garbage(now))
        with self.bank.ledger.writing() as now:
            now.require(Permission.DELETE)
            found = tuple(self._garbage(now))
            if found:
                now.append(Action.COLLECT, None, {"objects": [[item.name, item.size, item.reason] for item in found]})
            for item in found:
                if item.reason == UNFINISHED:
                    self.bank.objects.clear_leftover(item.name)
                else:
                    self.bank.objects.delete(item.name)
        return found

    def _garbage(self, now: Transaction) -> Iterator[Garbage]:
        known = _digests(now)
        kept: set[str] = set()
        for moment in (NOW, *_moments(now)):
            kept |= _digests(now, catalogue.living(moment))
        old = now.clock() - timedelta(seconds=self.grace)
        for item in self.bank.objects.listing():
            if item.sha256 in kept:
                continue
            if item.sha256 in known:
                yield Garbage(item.sha256, item.size, EXPIRED)
            elif item.modified < old:
                yield Garbage(item.sha256, item.size, UNNAMED)
        for item in self.bank.objects.leftovers():
            if item.modified < old:
                yield Garbage(item.sha256, item.size, UNFINISHED)


EXPIRED = "its block is expired"
UNNAMED = "no version names it"
UNFINISHED = "a write that was not finished"


def _digests(now: Transaction, *where: ColumnElement[bool]) -> set[str]:
    """Digests of the objects of versions, of all or of those for which something holds."""
    query = select(schema.versions.c.digest, schema.versions.c.weights).where(*where)
    return {digest for row in now.connection.execute(query) for digest in row}


def _moments(now: Transaction) -> list[int]:
    rows = schema.snapshots
    return list(now.connection.execute(select(rows.c.moment).where(rows.c.until == schema.NEVER)).scalars())
