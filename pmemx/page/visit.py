"""One request to the page: who asks, which moment of the bank they look at, and the answer as HTML or as JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, final
from urllib.parse import urlencode

from fastapi import Depends, Query, Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from pmemx.core.access import Permission
from pmemx.page import words
from pmemx.page.door import Door, Refused
from pmemx.page.drawing import HEIGHT, WIDTH, Drawing, places
from pmemx.page.questions import Json
from pmemx.store.bank import Bank
from pmemx.store.ledger import Identity
from pmemx.store.snapshots import Snapshots

API = "/api"
Text = Annotated[str, Query(max_length=400)]
Number = Annotated[int, Query(ge=0, le=2**31)]
PageNumber = Annotated[int, Query(ge=1, le=2**31)]
Before = Annotated[int | None, Query(ge=1, le=2**53)]


class JsonResponse(Response):
    """JSON in ASCII: no character of it can act on a terminal."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The bytes of the answer."""
        return json.dumps(content, ensure_ascii=True).encode()


@final
@dataclass(frozen=True)
class House:
    """What an app serves. record: the folder of a run whose routing is shown."""

    door: Door
    writable: bool
    record: Path | None

    @cached_property
    def templates(self) -> Environment:
        """Every value in a template is escaped, and what is invisible in it is written out."""
        made = Environment(
            loader=PackageLoader("pmemx.page"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=words.visible,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        for one in (
            words.number,
            words.size,
            words.short,
            words.moment,
            words.shade,
            words.pretty,
            words.degrees,
            places,
        ):
            made.filters[one.__name__] = one
        made.globals["box"] = {"width": WIDTH, "height": HEIGHT}
        return made

    def html(
        self,
        request: Request,
        template: str,
        values: Json,
        *,
        status: int = 200,
        visit: "Visit | None" = None,
        drawing: Drawing | None = None,
    ) -> Response:
        """A page. visit: who is in; without one, the page tells nothing of the bank but its name."""
        at = visit.at if visit else ""
        session = self.door.session(request)
        here = {
            "bank": Path(str(self.door.bank.path)).name or "bank",
            "path": request.url.path,
            "query": request.url.query,
            "seal": self.door.seal(request),
            "logged_in": session is not None,
            "at": at,
        }
        text = self.templates.get_template(template).render(it=values, here=here, visit=visit, drawing=drawing)
        # Half a character has no bytes; whatever is left of one stands as a question mark.
        return HTMLResponse(text.encode(errors="replace"), status)


@final
@dataclass(frozen=True)
class Visit:
    """A request that was let in. at: the moment that was asked for, as it was written; empty for the present."""

    request: Request
    house: House
    bank: Bank
    who: Identity
    head: tuple[int, str]
    at: str

    @property
    def may_change(self) -> bool:
        """Whether the page makes changes here; whether the principal may is the bank's to say."""
        return self.house.writable and not self.at

    @property
    def administers(self) -> bool:
        """Whether the principal may see what is about the whole bank."""
        return self.who.decide(Permission.ADMINISTER).allowed

    def require_change(self) -> None:
        """Raises Refused on a page that is read-only, or that shows the past."""
        if not self.house.writable:
            raise Refused("this page is read-only; start it with --writable to make changes")
        if self.at:
            raise Refused("the past cannot be changed; go back to the present")

    def link(self, path: str, query: Mapping[str, object]) -> str:
        """An address on this page that keeps the moment that is looked at."""
        kept = {key: value for key, value in ({"at": self.at} | dict(query)).items() if value not in ("", None)}
        return f"{path}?{urlencode(kept, errors='replace')}" if kept else path

    def answer(self, template: str, values: Json, *, drawing: Drawing | None = None) -> Response:
        """The values as a page, or below /api as JSON."""
        if self.request.url.path.startswith(f"{API}/"):
            return JsonResponse(values)
        return self.house.html(self.request, template, values, visit=self, drawing=drawing)


def house_of(request: Request) -> House:
    """What the app of a request serves."""
    return request.app.state.house


def visit(request: Request, at: Text = "") -> Visit:
    """Let a request in. at: an entry of the journal, or the name of a snapshot, to look at the bank as it was then.

    Raises LoginNeeded, AccessDenied, UnknownBlock for a moment that the journal does not reach.
    """
    house = house_of(request)
    bank = house.door.admit(request)
    with bank.ledger.reading() as now:
        who, head = now.identity, now.head
    if at:
        # A number of more digits is no entry; int would refuse the longest ones.
        bank = Snapshots(bank).view(int(at) if at.isdecimal() and len(at) < 18 else at)
    return Visit(request, house, bank, who, head, at)


Visiting = Annotated[Visit, Depends(visit)]
