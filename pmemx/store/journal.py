"""The audit trail as its readers see it: who did what to which version, when, and the hash that vouches for it."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select

from pmemx.core.access import Permission
from pmemx.core.clock import to_microseconds
from pmemx.core.event import Action, Event
from pmemx.store import catalogue, schema
from pmemx.store.bank import Bank
from pmemx.store.ledger import to_event


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
    ) -> tuple[Event, ...]:
        """Newest first. before: only entries with a smaller seq, for the next page."""
        rows = schema.journal
        with self.bank.ledger.reading() as now:
            query = select(rows).where(rows.c.seq <= now.moment).order_by(rows.c.seq.desc()).limit(limit)
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
                query = query.where(rows.c.seq < before)
            return tuple(to_event(row) for row in now.connection.execute(query))

    def head(self) -> tuple[int, str]:
        """seq and hash of the last entry. Noted outside the bank, the hash proves later that nothing up to it was lost."""
        with self.bank.ledger.reading() as now:
            return now.head

    def moment(self, time: datetime) -> int:
        """The last entry that was made by then, 0 where there was none."""
        rows = schema.journal
        query = select(func.max(rows.c.seq)).where(rows.c.at <= to_microseconds(time))
        with self.bank.ledger.reading() as now:
            return now.connection.execute(query).scalar() or 0
