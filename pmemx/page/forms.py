"""What is sent to the page: logins, and where the page is writable, changes that were confirmed."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from pmemx.core.access import Permission
from pmemx.core.errors import ConfigError
from pmemx.page.door import Refused
from pmemx.page.questions import found_at
from pmemx.page.visit import House, Number, Text, Visiting, house_of
from pmemx.store import catalogue, changes
from pmemx.store.bank import Bank
from pmemx.store.life import Life

router = APIRouter()
_MOST_BYTES, _MOST_FIELDS = 64 * 1024, 20


class Change(StrEnum):
    """What a writable page can do to a block."""

    TAG = "tag"
    UNTAG = "untag"
    ROLLBACK = "rollback"
    ARCHIVE = "archive"
    RESTORE = "restore"
    FREEZE = "freeze"
    THAW = "thaw"


async def form(request: Request) -> Mapping[str, str]:
    """The fields of a form. Raises Refused for anything but a small one in the ordinary encoding."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise Refused(f"a form is sent as application/x-www-form-urlencoded, got {kind or 'nothing'!r}")
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > _MOST_BYTES:
            raise Refused(f"the form is larger than {_MOST_BYTES} bytes; shorten it")
    try:
        fields = parse_qsl(data.decode("ascii"), keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError as error:
        raise Refused(f"the form cannot be read ({error}); send it from the page") from error
    return dict(fields)


Form = Annotated[Mapping[str, str], Depends(form)]


@router.get("/login", include_in_schema=False)
def login_form(request: Request, token: Text = "", next: Text = "/experts") -> Response:
    """Ask who is there. token: that of the link which the server printed; it works once and leaves the address at once."""
    house = house_of(request)
    if token:
        return _let_in(house, request, house.door.follow_link(request, token), next)
    return login_page(house, request, next)


@router.post("/login", include_in_schema=False)
def login(request: Request, fields: Form) -> Response:
    """Open a session."""
    house = house_of(request)
    house.door.check_form(request, fields.get("seal", ""))
    key = house.door.log_in(
        request, fields.get("token", ""), fields.get("principal", "").strip(), fields.get("own_token", "")
    )
    return _let_in(house, request, key, fields.get("next", ""))


@router.post("/logout", include_in_schema=False)
def logout(request: Request, fields: Form) -> Response:
    """End the session."""
    house = house_of(request)
    house.door.check_form(request, fields.get("seal", ""))
    house.door.log_out(request)
    response = RedirectResponse("/login", status_code=303)
    response.delete_cookie(house.door.cookie)
    return response


@router.get("/change", include_in_schema=False)
def confirm(visit: Visiting, action: Text, name: Text, number: Number = 0, tag: Text = "") -> Response:
    """Say what a change would do, and ask for a reason and a confirmation."""
    visit.require_change()
    kind = _kind(action)
    with visit.bank.ledger.reading() as now:
        full = visit.bank.full(name)
        permission = Permission.ADMINISTER if kind in (Change.FREEZE, Change.THAW) else Permission.WRITE
        key = catalogue.block_of(now, full, permission)
        values = {
            "action": kind.value,
            "name": catalogue.full_name(full.namespace, full.name),
            "number": number,
            "tag": tag,
            "state": catalogue.state_of(now, key).value,
        }
    return visit.answer("change.html", values)


@router.post("/change", include_in_schema=False)
def change(visit: Visiting, fields: Form) -> Response:
    """Make a confirmed change to a block, and show the block."""
    visit.require_change()
    visit.house.door.check_form(visit.request, fields.get("seal", ""))
    name, number = fields.get("name", ""), fields.get("number", "") or "0"
    if not (number.isdecimal() and len(number) < 10):
        raise ConfigError(
            f"the number of a version is a whole number, got {number!r}; choose a version on the block's page"
        )
    make(
        visit.bank, _kind(fields.get("action", "")), name, int(number), fields.get("tag", ""), fields.get("reason", "")
    )
    return RedirectResponse(visit.link("/block", {"name": name}), status_code=303)


def make(bank: Bank, kind: Change, name: str, number: int, tag: str, reason: str) -> None:
    """Make one change. Raises as the bank does."""
    life = Life(bank)
    match kind:
        case Change.TAG:
            with bank.transaction() as now:
                changes.tag(now, found_at(now, bank.full(name), number), tag, reason=reason)
        case Change.UNTAG:
            bank.untag(name, tag, reason=reason)
        case Change.ROLLBACK:
            bank.rollback(name, number, message=reason)
        case Change.ARCHIVE:
            life.archive(name, reason=reason)
        case Change.RESTORE:
            life.restore(name, reason=reason)
        case Change.FREEZE:
            life.freeze(name, reason=reason)
        case Change.THAW:
            life.thaw(name, reason=reason)


def login_page(house: House, request: Request, next: str, *, message: str = "", status: int = 200) -> Response:
    """The form to log in, with what was wrong with the last try."""
    door = house.door
    values = {
        "asks_token": door.asks_token and door.session(request) is None,
        "asks_principal": door.governed(),
        "next": _own(next),
        "message": message,
    }
    return house.html(request, "login.html", values, status=status)


def _let_in(house: House, request: Request, key: str, next: str) -> Response:
    response = RedirectResponse(_own(next), status_code=303)
    secure = request.url.scheme == "https"
    response.set_cookie(house.door.cookie, key, httponly=True, samesite="strict", secure=secure)
    return response


def _own(address: str) -> str:
    """An address on this page and on no other one."""
    safe = address.startswith("/") and not address.startswith(("//", "/\\")) and address.isprintable()
    return address if safe else "/experts"


def _kind(action: str) -> Change:
    if action not in set(Change):
        raise ConfigError(f"the page cannot {action!r} a block; it can {', '.join(Change)}")
    return Change(action)
