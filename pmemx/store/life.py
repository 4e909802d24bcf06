"""The life of blocks in a bank: use, archive, merge, freeze, expiry, and the sweep that TTL and disuse call for."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sqlalchemy import Row, select

from pmemx.core.access import Permission
from pmemx.core.errors import ConfigError, IllegalTransition
from pmemx.core.event import Action
from pmemx.core.lifecycle import State, Trigger
from pmemx.store import catalogue, changes, schema
from pmemx.store.bank import Bank
from pmemx.store.catalogue import Found, Listing
from pmemx.store.ledger import Transaction
from pmemx.store.references import Name

MOST_RELEVANCE = 1e6
"""Of one use. Sums of any number of uses stay finite, on every database."""
_MOST_USES = 2**31


@dataclass(frozen=True)
class Keeping:
    """When a sweep moves blocks.

    archive_below: a block whose standing is less is archived; 0 for none. grace: seconds from the archive that TTL
    brought until the block expires. expire_archived_after: the same for whatever else was archived, None for never.
    """

    archive_below: float = 0.0
    grace: float = 0.0
    expire_archived_after: float | None = None

    def __post_init__(self) -> None:
        for name in ("archive_below", "grace"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"{name} is {getattr(self, name)}; give a number of at least 0")
        if self.expire_archived_after is not None and not self.expire_archived_after >= 0:
            raise ConfigError(
                f"expire_archived_after is {self.expire_archived_after}; give seconds of at least 0, or None"
            )


@dataclass(frozen=True)
class Moved:
    """One move of a sweep."""

    name: Name
    before: State
    after: State
    trigger: Trigger


def standing(*, priority: int, uses: int, half_life: float | None, idle: float) -> float:
    """How much a block is worth keeping: 1 + priority + log2(1 + uses), halved every half_life seconds without a use.

    idle: seconds since its last use, or since its commit where there was none. half_life: None for no decay.
    """
    decay = 1.0 if half_life is None else 2.0 ** (-max(0.0, idle) / half_life)
    return (1.0 + priority + math.log2(1 + uses)) * decay


@dataclass(frozen=True)
class Life:
    """Moves of a bank's blocks. Each is one entry of the journal with its trigger, or IllegalTransition is raised."""

    bank: Bank

    def state(self, name: str) -> State:
        """The state of a block, an expired one included."""
        with self.bank.ledger.reading() as now:
            return catalogue.state_of(now, catalogue.block_of(now, self.bank.full(name)))

    def use(self, reference: str, *, count: int = 1, relevance: float = 1.0) -> None:
        """Note that a version served; what was generated becomes activated. relevance: of one use, 0 to 1e6.

        Raises AccessDenied without EXECUTE, ConfigError.
        """
        with self.bank.ledger.writing() as now:
            note_use(now, catalogue.resolve(now, reference, Permission.EXECUTE), count=count, relevance=relevance)

    def archive(self, name: str, *, reason: str = "") -> None:
        """Take a block out of selection; it can be restored."""
        self._move(name, State.ARCHIVED, Trigger.ARCHIVE, Permission.WRITE, reason)

    def restore(self, name: str, *, reason: str = "") -> None:
        """Bring a merged or archived block back: activated where it was ever used, else generated."""
        with self.bank.ledger.writing() as now:
            block = catalogue.block_of(now, self.bank.full(name), Permission.WRITE)
            state = State.ACTIVATED if catalogue.usage(now, block) else State.GENERATED
            changes.move(now, self.bank.full(name), state, Trigger.RESTORE, {"reason": reason})

    def freeze(self, name: str, *, reason: str = "") -> None:
        """Forbid every change of a generated or activated block, which stays in selection, until it is thawed.

        Asks ADMINISTER, as thaw does.
        """
        self._move(name, State.FROZEN, Trigger.FREEZE, Permission.ADMINISTER, reason)

    def thaw(self, name: str, *, reason: str = "") -> None:
        """Back to the state in which the block was frozen."""
        with self.bank.ledger.writing() as now:
            block = catalogue.block_of(now, self.bank.full(name), Permission.ADMINISTER)
            rows = schema.states
            earlier = select(rows.c.state).where(rows.c.block == block, rows.c.state != State.FROZEN)
            state = State(now.connection.execute(earlier.order_by(rows.c.since.desc()).limit(1)).scalar_one())
            changes.move(now, self.bank.full(name), state, Trigger.THAW, {"reason": reason})

    def expire(self, name: str, *, reason: str = "") -> None:
        """Leave only a tombstone of an archived block; the collector then takes its bytes. Asks DELETE."""
        self._move(name, State.EXPIRED, Trigger.EXPIRE, Permission.DELETE, reason)

    def merge(self, names: Iterable[str], into: str, *, reason: str = "") -> None:
        """Mark blocks as taken up in a version that was made from them; their history stays.

        Raises IllegalTransition when that version does not name every one of them among its parents.
        """
        with self.bank.ledger.writing() as now:
            made = catalogue.resolve(now, into)
            for text in names:
                name = self.bank.full(text)
                catalogue.block_of(now, name, Permission.WRITE)
                digests = {found.version.digest for found in catalogue.history(now, name)}
                if not digests.intersection(made.version.card.parents):
                    raise IllegalTransition(
                        f"{self.bank.reference(made.version)} names no version of {name} among its parents; "
                        "merge them again, so that the lineage says so"
                    )
                changes.move(now, name, State.MERGED, Trigger.MERGE, {"into": made.version.digest, "reason": reason})

    def standing(self, name: str) -> float:
        """See the function of that name: what a sweep compares with archive_below."""
        with self.bank.ledger.reading() as now:
            full = self.bank.full(name)
            catalogue.block_of(now, full)
            (line,) = catalogue.listing(now, where={"namespace": full.namespace, "name": full.name})
            return self._standing(now, line)

    def sweep(self, keeping: Keeping, *, dry_run: bool = False) -> tuple[Moved, ...]:
        """Archive what is past its TTL or of too little standing, and expire what was archived for long enough.

        Frozen blocks are passed over. dry_run: tell what would happen. Asks ADMINISTER on the bank.
        """
        if dry_run:
            with self.bank.ledger.reading() as now:
                now.require(Permission.ADMINISTER)
                return tuple(self._due(now, keeping))
        with self.bank.ledger.writing() as now:
            now.require(Permission.ADMINISTER)
            moves = tuple(self._due(now, keeping))
            for moved in moves:
                changes.move(now, moved.name, moved.after, moved.trigger)
            return moves

    def _move(self, name: str, to: State, trigger: Trigger, permission: Permission, reason: str) -> None:
        with self.bank.ledger.writing() as now:
            catalogue.block_of(now, self.bank.full(name), permission)
            changes.move(now, self.bank.full(name), to, trigger, {"reason": reason})

    def _standing(self, now: Transaction, line: Listing) -> float:
        found = catalogue.numbered(now, Name(line.namespace, line.name), line.number)
        rows, card = schema.journal, found.version.card
        committed = now.connection.execute(select(rows.c.at).where(rows.c.seq == found.seq)).scalar_one()
        idle = (now.now - max(committed, line.last_used)) / 1e6
        return standing(priority=card.priority, uses=line.uses, half_life=card.half_life, idle=idle)

    def _due(self, now: Transaction, keeping: Keeping) -> Iterator[Moved]:
        time = now.now
        for line in catalogue.listing(now):
            name, state = Name(line.namespace, line.name), State(line.state)
            trigger, since = None, time
            if state in (State.GENERATED, State.ACTIVATED, State.MERGED):
                if line.expires <= time:
                    trigger = Trigger.TTL
                elif keeping.archive_below and self._standing(now, line) < keeping.archive_below:
                    trigger = Trigger.DISUSE
                if trigger is not None:
                    yield Moved(name, state, State.ARCHIVED, trigger)
                    state = State.ARCHIVED
            if state is not State.ARCHIVED:
                continue
            if trigger is None:
                entry = self._archived(now, name)
                trigger, since = Trigger(entry.trigger), entry.at
            wait = keeping.grace if trigger is Trigger.TTL else keeping.expire_archived_after
            if wait is not None and time - since >= wait * 1e6:
                yield Moved(name, State.ARCHIVED, State.EXPIRED, Trigger.EXPIRE)

    def _archived(self, now: Transaction, name: Name) -> Row:
        rows, journal = schema.states, schema.journal
        query = (
            select(rows.c.trigger, journal.c.at)
            .join(journal, journal.c.seq == rows.c.since)
            .join(schema.blocks, schema.blocks.c.id == rows.c.block)
            .where(schema.blocks.c.namespace == name.namespace, schema.blocks.c.name == name.name)
            .where(rows.c.since <= now.moment, rows.c.until > now.moment)
        )
        return now.connection.execute(query).one()


def note_use(now: Transaction, found: Found, *, count: int, relevance: float) -> None:
    """Count uses of a version inside a transaction; relevance is of one use, 0 to 1e6. Raises ConfigError."""
    if not 1 <= count < _MOST_USES:
        raise ConfigError(f"a use counts 1 to {_MOST_USES - 1} times at once, got {count}; note it in parts")
    if not 0 <= relevance <= MOST_RELEVANCE:
        raise ConfigError(f"the relevance of a use is {relevance}; give a number from 0 to {MOST_RELEVANCE:g}")
    detail = {"number": found.version.number, "count": count, "relevance": relevance * count}
    now.append(Action.USE, found.full, detail)
    if catalogue.state_of(now, found.block) is State.GENERATED:
        changes.move(now, found.full, State.ACTIVATED, Trigger.USE)
