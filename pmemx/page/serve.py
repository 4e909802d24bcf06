"""Serving the page: on this machine alone, or elsewhere behind a token."""

import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

from pmemx.core.errors import ConfigError, StorageError
from pmemx.core.extras import install
from pmemx.store.bank import Bank

PORT = 8765


def serve(
    bank: Bank,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    token: str = "",
    writable: bool = False,
    record: Path | None = None,
    announce: Callable[[str], object] = print,
) -> None:
    """Serve the page of a bank until the process is told to end.

    port: 0 for any that is free. token: what everybody must show; anywhere but on this machine there must be one.
    record: the folder of a run whose routing is shown. announce: told the address as soon as it answers; where there is a
    token, the address holds it, works once, and is left for one without. Raises ConfigError, DataError, StorageError.
    """
    try:
        import uvicorn

        from pmemx.page.app import create_app
        from pmemx.page.door import is_loopback
    except ModuleNotFoundError as error:
        raise ConfigError(f"the page needs an extra ({error}); run: {install('serve')}") from error
    if not is_loopback(host) and not token:
        raise ConfigError(
            f"{host!r} can be reached from other machines, and no token is set; give one, or serve on 127.0.0.1"
        )
    app = create_app(bank, token=token, writable=writable, record=record)
    with _listening(host, port) as listening:
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}"
        announce(f"{address}/login?{urlencode({'token': token})}" if token else address)
        # No access log: an address may hold a token, and the journal tells who read what.
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, proxy_headers=False)
        uvicorn.Server(config).run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
    try:
        ((family, _, _, _, place), *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server((place[0], port), family=family)
    except (OSError, OverflowError) as error:
        raise StorageError(f"{host}:{port} cannot be served ({error}); choose another host or port") from error
