"""The audit trail as its readers see it: who did what to which version, when, and the hash that vouches for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select

from pmemx.core.access import Permission
from pmemx.core.clock import from_microseconds, to_microseconds
from pmemx.core.errors import ConfigError
from pmemx.core.event import Action, Event
from pmemx.store import catalogue, schema
from pmemx.store.bank import Bank
from pmemx.store.ledger import to_event

_MOST = 2**31


@dataclass(frozen=True)
class Entry:
    """An entry as its readers see it; see Event. hash: of what is stored.

    detail: of the digest of a secret it says only whether there is one.
    """

    seq: int
    at: int
    principal: str
    action: str
    namespace: str
    name: str
    detail: Mapping[str, Any]
    hash: str

    @property
    def time(self) -> datetime:
        """When, in UTC."""
        return from_microseconds(self.at)


@dataclass(frozen=True)
class Journal:
    """Entries of a bank's journal. Those about a block ask READ on it, all others ADMINISTER on the bank."""

    bank: Bank

    def entries(
        self,
        name: str = "",
        *,
        action: Action | None = None,
        principal: str = "",
        before: int | None = None,
        limit: int = 100,
    ) -> tuple[Entry, ...]:
        """Newest first. before: only entries with a smaller seq, for the next page. Raises ConfigError for a limit below 1."""
        if limit < 1:
            raise ConfigError(f"the limit of a list of entries is {limit}; the least is 1")
        rows = schema.journal
        with self.bank.ledger.reading() as now:
            query = select(rows).where(rows.c.seq <= now.moment).order_by(rows.c.seq.desc()).limit(min(limit, _MOST))
            if name:
                full = self.bank.full(name)
                catalogue.block_of(now, full)
                query = query.where(rows.c.namespace == full.namespace, rows.c.name == full.name)
            else:
                now.require(Permission.ADMINISTER)
            if action is not None:
                query = query.where(rows.c.action == action.value)
            if principal:
                query = query.where(rows.c.principal == principal)
            if before is not None:
                query = query.where(rows.c.seq < min(max(before, 0), schema.NEVER))
            return tuple(_entry(to_event(row)) for row in now.connection.execute(query))

    def head(self) -> tuple[int, str]:
        """seq and hash of the last entry that is seen. Noted outside the bank, the hash proves later that nothing up to it was lost."""
        with self.bank.ledger.reading() as now:
            return now.head

    def moment(self, time: datetime) -> int:
        """The last entry that was made by then, 0 where there was none. Raises ConfigError for a time without a zone."""
        if time.tzinfo is None:
            raise ConfigError(f"the time {time.isoformat()} has no time zone; give one, as in {time.isoformat()}+00:00")
        rows = schema.journal
        query = select(func.max(rows.c.seq)).where(rows.c.at <= to_microseconds(time))
        with self.bank.ledger.reading() as now:
            query = query.where(rows.c.seq <= now.moment)
            return now.connection.execute(query).scalar() or 0


def _entry(event: Event) -> Entry:
    detail = dict(event.detail)
    if event.action == Action.ENROL:
        detail["token"] = bool(detail.get("token"))
    return Entry(event.seq, event.at, event.principal, event.action, event.namespace, event.name, detail, event.hash)
