"""The app: its routes, what each answer tells the browser to refuse, and every error as a sentence."""

import logging
from pathlib import Path
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pmemx.core.errors import (
    AccessDenied,
    ConfigError,
    CorruptBlock,
    DataError,
    Diverged,
    IllegalTransition,
    IncompatibleBlock,
    PmemxError,
    PolicyRefused,
    StorageError,
    UnknownAnswer,
    UnknownBlock,
)
from pmemx.core.record import RunRecord
from pmemx.page import forms, pages
from pmemx.page.door import Door, LoginNeeded, Refused, TooManyFailures, host_of, is_loopback
from pmemx.page.visit import API, House, JsonResponse, Visiting, house_of
from pmemx.store.bank import Bank

# No script runs here: there is none, and default-src covers scripts. Nothing is loaded from anywhere else.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
STATUS: dict[type[Exception], int] = {
    PmemxError: 500,
    ConfigError: 400,
    DataError: 400,
    LoginNeeded: 401,
    AccessDenied: 403,
    Refused: 403,
    UnknownBlock: 404,
    UnknownAnswer: 404,
    Diverged: 409,
    IllegalTransition: 409,
    IncompatibleBlock: 409,
    PolicyRefused: 409,
    TooManyFailures: 429,
    CorruptBlock: 500,
    StorageError: 503,
}


def create_app(bank: Bank, *, token: str = "", writable: bool = False, record: Path | None = None) -> FastAPI:
    """The page of a bank. token: what everybody must show who comes in. writable: whether it makes changes.

    record: the folder of a run whose routing is shown. Raises DataError where there is no record of one.
    """
    if record is not None:
        RunRecord.read(record)
    app = FastAPI(
        title="pmemx bank",
        description="What a bank of parametric memory holds, as the principal who asks may see it. "
        "The page's token is sent as Authorization: Bearer; where the bank has members, "
        "Pmemx-Principal and Pmemx-Token say who asks. `at` looks at the bank as it was.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.state.house = House(Door(bank, token), writable, record)
    app.add_middleware(Guard)
    app.include_router(pages.router)
    app.include_router(forms.router)
    app.mount("/static", StaticFiles(packages=[("pmemx.page", "static")]))

    @app.get("/openapi.json", include_in_schema=False)
    def openapi(visit: Visiting) -> Response:
        return JsonResponse(app.openapi())

    app.add_exception_handler(PmemxError, _refusal)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _accident)
    return app


class Guard:
    """Refuses requests under another site's name, and puts the headers on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        request = Request(scope)
        host = host_of(request.headers.get("host", ""))
        server = (scope.get("server") or ("", 0))[0]
        # Another site may point its own name at this machine (DNS rebinding); the browser then takes us for that site.
        if (is_loopback(server) or not house_of(request).door.asks_token) and not is_loopback(host):
            text = "this page is reached as 127.0.0.1 or localhost only"
            await PlainTextResponse(text, 421)(scope, receive, guarded)
            return
        await self.app(scope, receive, guarded)


def _refusal(request: Request, error: Exception) -> Response:
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    if isinstance(error, LoginNeeded) and not _wants_json(request):
        asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        again = request.url.path == "/login"
        return forms.login_page(house_of(request), request, "" if again else asked, message=str(error), status=status)
    return _told(request, status, str(error), type(error).__name__)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: f"there is no page {request.url.path}; begin at the experts", 405: "this page takes no such request"}
    return _told(request, error.status_code, words.get(error.status_code, str(error.detail)), "")


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [f"{fault['loc'][-1]}: {fault['msg']}" for fault in error.errors()]
    return _told(request, 422, f"the address asks for what cannot be: {'; '.join(faults)}", "")


def _accident(request: Request, error: Exception) -> Response:
    """What nobody foresaw is the log's to tell, not the page's."""
    logging.getLogger(__name__).error("%s failed", quote(request.url.path), exc_info=error)
    response = _told(request, 500, "something went wrong that the page did not foresee; its log tells what", "")
    response.headers.update(HEADERS)
    return response


def _told(request: Request, status: int, message: str, kind: str) -> Response:
    if _wants_json(request):
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
        return JsonResponse({"error": kind, "message": message}, status, headers)
    return house_of(request).html(request, "error.html", {"status": status, "message": message}, status=status)


def _wants_json(request: Request) -> bool:
    return request.url.path.startswith(f"{API}/") or request.url.path == "/openapi.json"
