"""The pages that show something, each under its own address as HTML and below /api as JSON."""

from collections.abc import Callable
from threading import Lock

from fastapi import APIRouter
from starlette.responses import RedirectResponse, Response

from pmemx.core.access import Permission
from pmemx.core.errors import StorageError
from pmemx.page import questions
from pmemx.page.difference import difference
from pmemx.page.drawing import draw
from pmemx.page.routing import routing as routes_of
from pmemx.page.visit import API, Before, JsonResponse, Number, PageNumber, Text, Visiting
from pmemx.store.verification import findings

Question = Callable[..., Response]
router = APIRouter()
_verifying = Lock()


def twice(path: str) -> Callable[[Question], Question]:
    """Serve a question as a page and as JSON, by one path of permissions."""

    def add(ask: Question) -> Question:
        router.add_api_route(path, ask, include_in_schema=False)
        router.add_api_route(f"{API}{path}", ask, response_class=JsonResponse)
        return ask

    return add


@router.get("/", include_in_schema=False)
def home(visit: Visiting) -> Response:
    """The experts are the first page."""
    return RedirectResponse("/experts", status_code=303)


@twice("/experts")
def experts(
    visit: Visiting,
    text: Text = "",
    state: Text = "",
    domain: Text = "",
    base: Text = "",
    tag: Text = "",
    sort: Text = "name",
    page: PageNumber = 1,
) -> Response:
    """Blocks that the caller may read, a hundred at a time.

    text: what the name, the domain or the base's name contains. state, domain, tag: exactly these. base: the name of a base
    model, or how its fingerprint begins. sort: name, newest, uses or size.
    """
    found = questions.experts(
        visit.bank, text=text, state=state, domain=domain, base=base, tag=tag, sort=sort, page=page
    )
    return visit.answer("experts.html", found)


@twice("/block")
def block(visit: Visiting, name: Text, below: Before = None) -> Response:
    """One block: card, standing, versions with their scores, usage, and its life. below: versions before that number."""
    return visit.answer("block.html", questions.block(visit.bank, name, below=below))


@twice("/version")
def version(visit: Visiting, name: Text, number: Number = 0) -> Response:
    """One version, by default the latest: card, sites, digests, signatures, scores and lineage."""
    values, lineage = questions.version(visit.bank, name, number)
    return visit.answer("version.html", values, drawing=draw(lineage))


@twice("/diff")
def diff(visit: Visiting, name: Text, before: Number = 0, after: Number = 0, other: Text = "") -> Response:
    """What changed from one version to another, by default the last change of the block. other: the block of `after`."""
    return visit.answer("diff.html", difference(visit.bank, name, before, other, after))


@twice("/routing")
def routing(visit: Visiting, gate: Text = "") -> Response:
    """Which domain went to which expert in the run that the page was given, and which block took part in which answer."""
    return visit.answer("routing.html", routes_of(visit.bank, visit.who, visit.house.record, gate))


@twice("/journal")
def journal(
    visit: Visiting, name: Text = "", action: Text = "", principal: Text = "", before: Before = None
) -> Response:
    """The audit trail, newest first; of the whole bank only for those who administer it. before: the next page."""
    return visit.answer(
        "journal.html", questions.journal(visit.bank, name=name, action=action, principal=principal, before=before)
    )


@twice("/members")
def members(visit: Visiting) -> Response:
    """Who may do what, and what protects the tags; for those who administer the bank."""
    return visit.answer("members.html", questions.members(visit.bank))


@twice("/snapshots")
def snapshots(visit: Visiting) -> Response:
    """Named moments of the bank, to look at it as it was."""
    return visit.answer("snapshots.html", questions.snapshots(visit.bank))


@twice("/verify")
def verify(visit: Visiting, run: bool = False) -> Response:
    """Check the journal's chain, the tables and every stored byte, when `run` says so; for those who administer the bank.

    Raises StorageError while another check runs.
    """
    with visit.bank.ledger.reading() as now:
        now.require(Permission.ADMINISTER)
    found: list[str] = []
    if run:
        if not _verifying.acquire(blocking=False):
            raise StorageError("somebody else is verifying a bank just now; wait for that to end and try again")
        try:
            found = list(findings(visit.bank))
        finally:
            _verifying.release()
    return visit.answer("verify.html", {"ran": run, "findings": found})
