"""The ledger of a bank: transactions that know who acts, what time it is, and add to a hash-chained journal."""

import hashlib
import hmac
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from threading import get_ident
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from pmemx.core.access import Decision, Grant, Permission, Purpose, Request, Role, decide
from pmemx.core.canonical import canonical_json
from pmemx.core.card import Sensitivity
from pmemx.core.clock import Clock, from_microseconds, system_clock, to_microseconds
from pmemx.core.errors import AccessDenied, ConfigError, PolicyRefused, StorageError
from pmemx.core.event import GENESIS, Action, Event
from pmemx.store import engine, schema
from pmemx.store.projection import project
from pmemx.store.references import SHARED, Name
from pmemx.store.shown import shown

NOW = schema.NEVER - 1
"""The moment of a ledger that shows its present."""


@dataclass(frozen=True)
class Identity:
    """Who acts, and what the bank lets them do.

    governed: whether the bank knows any principal at all. guarded: whether it asks this one for a token.
    """

    principal: str
    governed: bool
    known: bool
    revoked: bool
    grants: tuple[Grant, ...]
    guarded: bool = False

    def decide(
        self,
        permission: Permission,
        name: Name | None = None,
        *,
        purpose: Purpose = Purpose.WITHIN,
        sensitivity: str = Sensitivity.INTERNAL.value,
    ) -> Decision:
        """The decision on a permission for a block; without a name, for the bank as a whole."""
        namespace, block = (name.namespace, name.name) if name else ("", "")
        request = Request(self.principal, permission, namespace, block, purpose, sensitivity)
        if self.governed and not self.known:
            return Decision(False, request, "the bank does not know this principal; an owner may enrol them")
        return decide(request, self.grants, governed=self.governed, revoked=self.revoked)


@dataclass(frozen=True)
class Claimed:
    """What anybody is told of a principal: whether the bank has members, knows this one, and asks them for a token."""

    governed: bool
    known: bool
    guarded: bool


_LAST = (
    select(schema.journal.c.seq, schema.journal.c.at, schema.journal.c.hash)
    .order_by(schema.journal.c.seq.desc())
    .limit(1)
)


@dataclass(frozen=True)
class Transaction:
    """One consistent look at the ledger; where it was opened for writing, all that is appended is kept, or nothing.

    moment: the last entry of the journal that is seen. home: the namespace of names that are given without one.
    """

    connection: Connection
    identity: Identity
    clock: Clock
    moment: int
    home: str
    writable: bool

    @property
    def now(self) -> int:
        """Microseconds since 1970, never before the last entry of the journal: clocks may go back, a journal may not.

        A look at the past shows the time of the last entry that it sees.
        """
        rows = schema.journal
        query = select(rows.c.at).where(rows.c.seq <= self.moment).order_by(rows.c.seq.desc()).limit(1)
        last = self.connection.execute(query).scalar() or 0
        return max(to_microseconds(self.clock()), last) if self.moment == NOW else last

    @property
    def head(self) -> tuple[int, str]:
        """seq and hash of the last entry that is seen; (0, GENESIS) before the first."""
        row = self.connection.execute(_LAST.where(schema.journal.c.seq <= self.moment)).one_or_none()
        return (row.seq, row.hash) if row else (0, GENESIS)

    def require(
        self,
        permission: Permission,
        name: Name | None = None,
        *,
        purpose: Purpose = Purpose.WITHIN,
        sensitivity: str = Sensitivity.INTERNAL.value,
    ) -> None:
        """Raises AccessDenied, which the ledger notes in its journal, unless the principal may."""
        self.identity.decide(permission, name, purpose=purpose, sensitivity=sensitivity).enforce()

    def append(self, action: Action, name: Name | None, detail: Mapping[str, Any]) -> Event:
        """Add an entry to the journal and do to the tables what it says."""
        assert self.writable, "a transaction for reading appends nothing"
        seq, at, last = self.connection.execute(_LAST).one_or_none() or (0, 0, GENESIS)
        namespace, block = (name.namespace, name.name) if name else ("", "")
        # Through JSON, so that what is projected now is what a replay will project.
        plain = json.loads(canonical_json(detail))
        at = max(to_microseconds(self.clock()), at)
        event = Event(seq + 1, at, self.identity.principal, action.value, namespace, block, plain, last)
        row = {
            "seq": event.seq,
            "at": event.at,
            "principal": event.principal,
            "action": event.action,
            "namespace": event.namespace,
            "name": event.name,
            "detail": canonical_json(plain),
            "previous": last,
            "hash": event.hash,
        }
        self.connection.execute(insert(schema.journal), row)
        project(self.connection, event)
        return event


# The transactions that are open for writing: verbs inside one join it. By process, since a fork must not use its parent's
# connection, by thread, since a copied context may run in another one, and by the ledger's location.
_Place = tuple[int, int, str]
_open: ContextVar[Mapping[_Place, Transaction] | None] = ContextVar("open transactions", default=None)


@dataclass(frozen=True)
class Ledger:
    """A journal and its tables at a location: the path of an SQLite file, or a database's URL.

    principal, token: who acts, and the secret that proves it where the bank asks for one. moment: the entry of the
    journal that is the last to be seen; a ledger of the past refuses to be written. home: the namespace of names that
    are given without one.
    """

    location: str
    principal: str
    token: str = field(default="", repr=False)
    clock: Clock = system_clock
    moment: int = NOW
    home: str = SHARED

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """A look at one state of the ledger. Raises StorageError, AccessDenied."""
        if outer := self._joined():
            # Asked again: what was done before in this transaction may have changed who they are.
            who = self._identity(outer.connection)
            yield replace(outer, identity=who, moment=self.moment, home=self.home)
            return
        try:
            with engine.reading(self.location) as connection:
                who = self._identity(connection)
                yield Transaction(connection, who, self.clock, self.moment, self.home, writable=False)
        except AccessDenied as error:
            self._note(Action.DENIED, error)
            raise

    @contextmanager
    def writing(self) -> Iterator[Transaction]:
        """All that happens inside is one transaction; inside another one of this ledger, it becomes part of that.

        Raises StorageError, AccessDenied. When anything is raised, nothing of it is kept.
        """
        self._check_present()
        if outer := self._joined():
            with outer.connection.begin_nested():
                yield replace(outer, identity=self._identity(outer.connection), home=self.home)
            return
        try:
            with engine.writing(self.location) as connection:
                give_id(connection, self.clock)
                who = self._identity(connection)
                transaction = Transaction(connection, who, self.clock, NOW, self.home, writable=True)
                mark = _open.set({**(_open.get() or {}), self._place: transaction})
                try:
                    yield transaction
                finally:
                    _open.reset(mark)
        except AccessDenied as error:
            self._note(Action.DENIED, error)
            raise
        except PolicyRefused as error:
            self._note(Action.REFUSED, error)
            raise

    @contextmanager
    def repairing(self) -> Iterator[Connection]:
        """Alone with a ledger whatever its tables are like, to bring them in order.

        Who acts is asked at the end, of the tables as they then are: whoever may not ADMINISTER the bank has changed
        nothing. Raises StorageError, AccessDenied.
        """
        self._check_present()
        assert self._joined() is None, "a ledger is not repaired inside a transaction"
        try:
            with engine.repairing(self.location) as connection:
                yield connection
                if engine.revision(connection):
                    self._identity(connection).decide(Permission.ADMINISTER).enforce()
        except AccessDenied as error:
            self._note(Action.DENIED, error)
            raise

    def claimed(self) -> Claimed:
        """What the bank says of the principal, whatever their token: for a page that must first ask who is there."""
        with engine.reading(self.location) as connection:
            who = identify(connection, self.principal)
        return Claimed(who.governed, who.known, who.guarded)

    def bank_id(self) -> str:
        """The bank's own id, 32 hexadecimal digits; empty before its first entry."""
        with self.reading() as now:
            return now.connection.execute(select(schema.bank.c.id)).scalar() or ""

    @property
    def _place(self) -> _Place:
        # One file may be spelled in many ways.
        location = self.location if engine.is_server(self.location) else os.path.realpath(self.location)
        return os.getpid(), get_ident(), location

    def _check_present(self) -> None:
        if self.moment != NOW:
            raise StorageError(
                f"this shows {shown(self.location)} as of entry {self.moment} and refuses changes; open the bank itself"
            )

    def _joined(self) -> Transaction | None:
        outer = (_open.get() or {}).get(self._place)
        # A context that was copied inside a transaction may outlive it.
        if outer is None or outer.connection.closed:
            return None
        if outer.identity.principal != self.principal:
            raise ConfigError(
                f"{self.principal!r} acts inside a transaction of {outer.identity.principal!r}; end that one first"
            )
        return outer

    def _identity(self, connection: Connection) -> Identity:
        """Who acts. Raises AccessDenied for strangers, for the revoked, and without the token that the bank asks of them."""
        who = identify(connection, self.principal)
        rows = schema.principals
        token = connection.execute(select(rows.c.token).where(rows.c.name == self.principal)).scalar()
        if token and not hmac.compare_digest(token, token_digest(self.token)):
            request = Request(self.principal, Permission.READ)
            Decision(False, request, "the token is not theirs; set PMEMX_TOKEN to the one the owner gave").enforce()
        if who.governed and (who.revoked or not who.known):
            who.decide(Permission.READ).enforce()
        return who

    def _note(self, action: Action, error: Exception) -> None:
        """Keep a refusal in the journal; where that cannot be written, the refusal itself is what matters."""
        try:
            with engine.writing(self.location) as connection:
                nobody = Identity(self.principal, governed=True, known=False, revoked=False, grants=())
                Transaction(connection, nobody, self.clock, NOW, self.home, writable=True).append(
                    action, None, {"reason": str(error)}
                )
        except StorageError:
            return


def identify(connection: Connection, principal: str) -> Identity:
    """What a bank knows of a principal and lets them do."""
    rows, held = schema.principals, schema.grants
    governed = connection.execute(select(rows.c.name).limit(1)).first() is not None
    row = connection.execute(select(rows).where(rows.c.name == principal)).one_or_none() if governed else None
    query = select(held).where(held.c.principal == principal, held.c.until == schema.NEVER)
    grants = tuple(Grant(g.principal, Role(g.role), g.scope) for g in connection.execute(query)) if row else ()
    revoked = row is not None and row.revoked != schema.NEVER
    return Identity(principal, governed, row is not None, revoked, grants, row is not None and bool(row.token))


def token_digest(token: str) -> str:
    """What the ledger keeps of a secret."""
    return hashlib.sha256(token.encode()).hexdigest()


def give_id(connection: Connection, clock: Clock) -> None:
    """Give a bank that has none its id."""
    if connection.execute(select(schema.bank.c.id)).first() is None:
        connection.execute(insert(schema.bank), {"id": uuid.uuid4().hex, "created": to_microseconds(clock())})


def to_event(row: Row[Any]) -> Event:
    """The entry that a row of the journal holds. Raises ValueError when its detail is no JSON object."""
    detail = json.loads(row.detail)
    if not isinstance(detail, dict):
        raise ValueError(f"entry {row.seq} has the detail {row.detail[:60]!r}, which is no object")
    return Event(row.seq, row.at, row.principal, row.action, row.namespace, row.name, detail, row.previous)


def readable_time(at: int) -> str:
    """ISO 8601 in UTC, to the second."""
    return from_microseconds(at).isoformat(timespec="seconds")
