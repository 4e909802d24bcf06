"""Snapshots of a whole bank: a name for a moment, a look at it that changes nothing, and the way back to it."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select

from pmemx.core.access import Permission
from pmemx.core.errors import ConfigError, CorruptBlock, IllegalTransition, UnknownBlock
from pmemx.core.event import Action
from pmemx.core.lifecycle import State, Trigger
from pmemx.store import catalogue, changes, schema
from pmemx.store.bank import Bank
from pmemx.store.catalogue import Listing
from pmemx.store.journal import Journal
from pmemx.store.ledger import Transaction
from pmemx.store.references import LATEST, Name, printable

Moment = str | int | datetime
"""A snapshot's name, the seq of an entry of the journal, or a time."""


@dataclass(frozen=True)
class Snapshot:
    """A named moment: the last entry of the journal that it shows."""

    name: str
    moment: int


@dataclass(frozen=True)
class Restored:
    """What a restore did: blocks whose bytes, tags or state were brought back, and blocks that were not there then."""

    moment: int
    changed: tuple[Name, ...]
    archived: tuple[Name, ...]


@dataclass(frozen=True)
class Snapshots:
    """Moments of a bank. What a snapshot shows is kept by the collector until the snapshot is dropped."""

    bank: Bank

    def take(self, name: str) -> Snapshot:
        """Give the present a name. Raises ConfigError when the name is taken, or cannot be shown."""
        if not name.strip() or name.isdecimal() or not printable(name):
            raise ConfigError(f"a snapshot's name is visible text on one line, no number, got {name!r}; choose another")
        with self.bank.ledger.writing() as now:
            now.require(Permission.ADMINISTER)
            if name in _held(now):
                raise ConfigError(f"there is a snapshot {name!r} already; drop it, or choose another name")
            snapshot = Snapshot(name, now.head[0])
            now.append(Action.SNAPSHOT, None, {"snapshot": name, "moment": snapshot.moment})
            return snapshot

    def list(self) -> tuple[Snapshot, ...]:
        """Every snapshot, oldest first."""
        with self.bank.ledger.reading() as now:
            found = [Snapshot(name, moment) for name, moment in _held(now).items()]
        return tuple(sorted(found, key=lambda snapshot: snapshot.moment))

    def drop(self, name: str) -> None:
        """Forget a snapshot; the history stays. Raises UnknownBlock when there is none."""
        with self.bank.ledger.writing() as now:
            now.require(Permission.ADMINISTER)
            if name not in _held(now):
                raise UnknownBlock(f"no snapshot {name!r}; there are {', '.join(sorted(_held(now))) or 'none'}")
            now.append(Action.DROP, None, {"snapshot": name})

    def moment(self, of: Moment) -> int:
        """The entry of the journal that a moment means. Raises UnknownBlock for what the journal does not reach."""
        if isinstance(of, datetime):
            return Journal(self.bank).moment(of)
        with self.bank.ledger.reading() as now:
            if isinstance(of, str):
                if of not in (held := _held(now)):
                    raise UnknownBlock(f"no snapshot {of!r}; there are {', '.join(sorted(held)) or 'none'}")
                return held[of]
            if not 0 <= of <= now.head[0]:
                raise UnknownBlock(f"the journal has entries 1 to {now.head[0]}, but no {of}")
            return of

    def view(self, of: Moment) -> Bank:
        """The bank as it was then: a what-if that the bank and its journal know nothing of."""
        return self.bank.at(self.moment(of))

    def restore(self, to: Moment, *, message: str = "") -> Restored:
        """Bring every block back to what it was: bytes by new versions that restore old ones, tags and states by new entries.

        Blocks that were not there, or had expired, are archived; of one that expired since, what its tags pointed at comes
        back in versions of their own. All of it is one transaction; nothing of the history is lost, so that a restore can
        be undone by another. Raises IllegalTransition when a frozen block would have to change, CorruptBlock when bytes of
        then were collected, and PolicyRefused when a tag was protected since and its version of then does not fit: a
        restore is an owner's act, who may unprotect the tag first.
        """
        moment = self.moment(to)
        with self.bank.ledger.writing() as now:
            now.require(Permission.ADMINISTER)
            with self.bank.at(moment).ledger.reading() as past:
                then = {(line.namespace, line.name): line for line in catalogue.listing(past)}
                tags = {key: catalogue.pointers(past, catalogue.block_of(past, Name(*key))) for key in then}
            changed, archived = [], []
            for line in catalogue.listing(now):
                key = (line.namespace, line.name)
                if key in then and then[key].state != State.EXPIRED:
                    if self._bring_back(now, line, then[key], tags[key], message):
                        changed.append(Name(*key))
                elif State(line.state) in (State.GENERATED, State.ACTIVATED, State.MERGED):
                    changes.move(
                        now, Name(*key), State.ARCHIVED, Trigger.ARCHIVE, {"reason": f"restore to entry {moment}"}
                    )
                    archived.append(Name(*key))
            detail = {"moment": moment, "message": message, "changed": len(changed), "archived": len(archived)}
            now.append(Action.RESTORE, None, detail)
        return Restored(moment, tuple(changed), tuple(archived))

    def _bring_back(self, now: Transaction, line: Listing, then: Listing, tags: dict[str, int], message: str) -> bool:
        """Whether anything of the block had to change."""
        name = Name(line.namespace, line.name)
        before = now.head[0]
        block = catalogue.block_of(now, name)
        known = catalogue.pointers(now, block)
        wanted = {tag: _present(now, block, number) for tag, number in _without_latest(tags).items()}
        same = line.digest == then.digest and _without_latest(known) == wanted
        if line.state == State.FROZEN and not (same and then.state == State.FROZEN):
            if not same:
                raise IllegalTransition(f"block {name} is frozen and was another then; thaw it before you restore")
            return False
        if same and line.state == then.state:
            return False
        for number in sorted({number for tag, number in tags.items() if tag != LATEST and not wanted[tag]}):
            self._again(now, block, number, message)
        if line.digest != then.digest or line.state == State.EXPIRED:
            self._again(now, block, then.number, message)
        for tag in sorted(known.keys() - tags.keys()):
            changes.untag(now, catalogue.history_end(now, block), tag, reason=message)
        for tag, number in sorted(_without_latest(tags).items()):
            found = catalogue.at_number(now, block, _present(now, block, number))
            changes.tag(now, found, tag, reason=message)
        _restore_state(now, name, block, State(then.state))
        return now.head[0] > before

    def _again(self, now: Transaction, block: int, number: int, message: str) -> None:
        """Make the bytes of an earlier version the latest."""
        found = catalogue.at_number(now, block, number)
        for digest in (found.version.digest, found.weights):
            if not self.bank.objects.has(digest):
                raise CorruptBlock(f"{found.full}@{number}: object {digest[:12]} was collected; restore it from a copy")
        changes.roll_back(now, found, self.bank.manifest_of(found), message=message or "restore of the bank")


def _present(now: Transaction, block: int, number: int) -> int:
    """The version of a block's present life with the bytes of one that may be of an earlier life, 0 for none."""
    wanted, begin = catalogue.at_number(now, block, number), catalogue.last_expiry(now, block)
    if wanted.seq > begin:
        return number
    versions = catalogue.versions_of(now, block)
    same = [one for one in versions if one.seq > begin and one.version.digest == wanted.version.digest]
    return same[-1].version.number if same else 0


def _restore_state(now: Transaction, name: Name, block: int, then: State) -> None:
    state = catalogue.state_of(now, block)
    detail = {"reason": "restore of the bank"}
    if state in (State.MERGED, State.ARCHIVED) and then not in (state, State.ARCHIVED):
        live = State.ACTIVATED if then is State.ACTIVATED else State.GENERATED
        changes.move(now, name, live, Trigger.RESTORE, detail)
        state = live
    if then is not state and then in _WAYS:
        changes.move(now, name, then, _WAYS[then], detail)


# A block that was generated then and used since stays activated: its use is a fact.
_WAYS = {
    State.ACTIVATED: Trigger.USE,
    State.ARCHIVED: Trigger.ARCHIVE,
    State.MERGED: Trigger.MERGE,
    State.FROZEN: Trigger.FREEZE,
}


def _without_latest(tags: dict[str, int]) -> dict[str, int]:
    return {tag: number for tag, number in tags.items() if tag != LATEST}


def _held(now: Transaction) -> dict[str, int]:
    rows = schema.snapshots
    query = select(rows.c.name, rows.c.moment).where(rows.c.since <= now.moment, rows.c.until > now.moment)
    return {row.name: row.moment for row in now.connection.execute(query)}
