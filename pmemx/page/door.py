"""Who comes in: the page's own token, a principal's own token, and sessions that live in the server's memory alone."""

import hashlib
import hmac
import ipaddress
import secrets
from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from threading import Lock
from typing import final
from urllib.parse import urlsplit

from starlette.requests import Request

from pmemx.core.errors import AccessDenied, PmemxError
from pmemx.store.bank import Bank

LASTS = timedelta(hours=12)
"""How long a session is good for."""
PRINCIPAL, TOKEN = "Pmemx-Principal", "Pmemx-Token"
"""Headers by which a program says who it is, where the bank has members."""
_MOST_SESSIONS = 1000
_MOST_FAILURES, _FORGOTTEN = 10, timedelta(minutes=1)


class LoginNeeded(PmemxError):
    """Nobody has said yet, or not rightly, who they are."""


class TooManyFailures(PmemxError):
    """Somebody is guessing."""


class Refused(PmemxError):
    """The request comes from elsewhere than this page, or asks for a change that this page does not make."""


@dataclass(frozen=True)
class Session:
    """Who logged in. principal is empty where the bank has no members; their token never leaves the server again."""

    principal: str
    token: str = field(repr=False)
    until: datetime


@final
class Door:
    """Lets requests in to a bank, each as the principal who sent it.

    A bank that knows principals asks every request for one of them and their own token, so that it refuses the revoked at
    once, whatever session they have. A bank without members trusts whoever gets past the page's token.
    """

    def __init__(self, bank: Bank, token: str) -> None:
        self.bank = bank
        self.asks_token = bool(token)
        # Another port of this machine shares its cookies, so that two pages must not use one name.
        self.cookie = f"pmemx_{secrets.token_hex(4)}"
        self._token = token
        self._key = secrets.token_bytes(32)
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._failures: OrderedDict[str, deque[datetime]] = OrderedDict()
        self._link_is_fresh = True
        self._lock = Lock()

    def admit(self, request: Request) -> Bank:
        """The bank as whoever asks may see it. Raises LoginNeeded, AccessDenied, TooManyFailures, StorageError."""
        session = self.session(request)
        if session is None and self.asks_token and not self._bears(request):
            raise LoginNeeded("this page asks for its token; log in, or send it as Authorization: Bearer")
        if not self.governed():
            return self.bank
        if session is not None and session.principal:
            return self._acting(session.principal, session.token)
        principal, token = request.headers.get(PRINCIPAL, ""), request.headers.get(TOKEN, "")
        if not principal or not token:
            raise LoginNeeded(f"this bank has members; log in as one of them, or send {PRINCIPAL} and {TOKEN}")
        return self._counted(address(request), principal, token)

    def governed(self) -> bool:
        """Whether the bank has members, so that everybody must say who they are."""
        return self.bank.ledger.claimed().governed

    def session(self, request: Request) -> Session | None:
        """The session whose cookie a request carries."""
        with self._lock:
            found = self._sessions.get(self.key(request))
        return found if found is not None and self.bank.clock() < found.until else None

    def key(self, request: Request) -> str:
        """The cookie of a request, empty where there is none."""
        return request.cookies.get(self.cookie, "")

    def log_in(self, request: Request, token: str, principal: str, own_token: str) -> str:
        """Open a session; returns its key. Raises LoginNeeded, AccessDenied, TooManyFailures."""
        self._not_too_often(address(request))
        if self.asks_token and self.session(request) is None and not _equal(token, self._token):
            self._failed(address(request))
            raise LoginNeeded("this is not the token of this page; ask whoever started it")
        if not self.governed():
            return self._open(request, "", "")
        # An empty token would stand for the one in the environment of the server.
        if not principal or not own_token:
            raise LoginNeeded("this bank has members; give the name of one of them and their token")
        self._counted(address(request), principal, own_token)
        return self._open(request, principal, own_token)

    def follow_link(self, request: Request, token: str) -> str:
        """Open a session by the link that the server printed, which works once. Raises LoginNeeded, TooManyFailures."""
        self._not_too_often(address(request))
        with self._lock:
            works = self.asks_token and self._link_is_fresh and _equal(token, self._token)
            self._link_is_fresh = self._link_is_fresh and not works
        if not works:
            self._failed(address(request))
            raise LoginNeeded("this link was used already or is none of this page; log in with the token")
        return self._open(request, "", "")

    def log_out(self, request: Request) -> None:
        """End a session."""
        with self._lock:
            self._sessions.pop(self.key(request), None)

    def seal(self, request: Request) -> str:
        """What a form carries to prove that this page made it for this session."""
        return hmac.new(self._key, self.key(request).encode(), hashlib.sha256).hexdigest()

    def check_form(self, request: Request, seal: str) -> None:
        """Raises Refused for a form that another site sent, or that was made for another session."""
        origin, host = request.headers.get("origin"), request.headers.get("host", "")
        if origin is not None and origin.partition("://")[2] != host:
            raise Refused(
                f"the form comes from {origin!r} and not from {host!r}; open the page itself and send it there"
            )
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise Refused("the form comes from another site; open the page itself and send it there")
        if not hmac.compare_digest(seal.encode(), self.seal(request).encode()):
            raise Refused("the form was made for another session; open its page again and send it there")

    def _open(self, request: Request, principal: str, token: str) -> str:
        key = secrets.token_urlsafe(32)
        with self._lock:
            self._sessions.pop(self.key(request), None)
            self._sessions[key] = Session(principal, token, self.bank.clock() + LASTS)
            while len(self._sessions) > _MOST_SESSIONS:
                self._sessions.popitem(last=False)
        return key

    def _acting(self, principal: str, token: str) -> Bank:
        bank = replace(self.bank, principal=principal, token=token)
        who = bank.ledger.claimed()
        if who.known and not who.guarded:
            raise AccessDenied(
                f"{principal!r} has no token, so that this page cannot tell them from others; an owner gives them one by "
                f"pmemx bank enrol {principal} --with-token"
            )
        # Asks for the token, and notes in the journal who was refused.
        with bank.ledger.reading():
            return bank

    def _counted(self, sender: str, principal: str, token: str) -> Bank:
        self._not_too_often(sender)
        try:
            return self._acting(principal, token)
        except AccessDenied:
            self._failed(sender)
            raise

    def _bears(self, request: Request) -> bool:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return False
        self._not_too_often(address(request))
        right = _equal(token.strip(), self._token)
        if not right:
            self._failed(address(request))
        return right

    def _not_too_often(self, sender: str) -> None:
        with self._lock:
            times = self._failures.get(sender, ())
            recent = [time for time in times if self.bank.clock() - time < _FORGOTTEN]
        if len(recent) >= _MOST_FAILURES:
            raise TooManyFailures(
                f"{len(recent)} logins from {sender} failed within a minute; wait for one and try again"
            )

    def _failed(self, sender: str) -> None:
        with self._lock:
            self._failures.setdefault(sender, deque(maxlen=_MOST_FAILURES)).append(self.bank.clock())
            while len(self._failures) > _MOST_SESSIONS:
                self._failures.popitem(last=False)


def address(request: Request) -> str:
    """Where a request comes from."""
    return request.client.host if request.client else "somewhere"


def host_of(address: str) -> str:
    """The host that an address or the header `Host` names, without its port; empty where it names none."""
    try:
        return urlsplit(address if "//" in address else f"//{address}").hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host of that name."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _equal(given: str, right: str) -> bool:
    """In a time that tells nothing of either, their lengths included."""
    one, other = (hashlib.sha256(text.encode(errors="surrogatepass")).digest() for text in (given, right))
    return hmac.compare_digest(one, other)
