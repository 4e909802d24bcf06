"""Other banks, told by one string: a folder, PLACE|DATABASE, or hub:owner/name."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from pmemx.core.errors import ConfigError, StorageError
from pmemx.exchange.hub import HUB, opened_repository
from pmemx.store.bank import LEDGER_FILE, Bank
from pmemx.store.shown import shown

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@contextmanager
def opened(source: str, reader: Bank) -> Iterator[Bank]:
    """The bank that a source names, as the reader's principal sees it.

    A repository of the Hub may be asked for at a revision: hub:owner/name@revision. Where that bank asks for a token, it is
    looked for in PMEMX_TOKEN; a token that was given to the reader alone is not shown to another bank. Raises StorageError when there is no bank, ConfigError.
    """
    source = checked_source(source)
    if source.startswith(HUB):
        repo_id, _, revision = source.removeprefix(HUB).partition("@")
        with opened_repository(f"{HUB}{repo_id}", revision=revision or None) as held:
            yield held
        return
    place, _, database = source.partition("|")
    try:
        there = bool(database) or (Path(place) / LEDGER_FILE).is_file()
    except OSError as error:
        raise StorageError(f"{place} cannot be a bank ({error}); check the path") from error
    if not there:
        raise StorageError(f"there is no bank at {place} (no {LEDGER_FILE}); check the path, or mount its disk")
    yield Bank(place, database, principal=reader.ledger.principal, clock=reader.clock)


def checked_source(source: str) -> str:
    """The source in the form in which it may be kept: a folder by its whole path.

    Raises ConfigError for a URL with a password, which would stay in the journal for good, for a path that cannot be, and for a URL of objects
    without the database that knows what they are.
    """
    if source.startswith(HUB):
        return source
    place, _, database = source.partition("|")
    for url in (place, database):
        if _URL.match(url) and _has_password(url):
            raise ConfigError(
                f"the source {shown(url).partition('?')[0]} comes with a password, which a journal would keep for good; "
                "give it by the environment (PGPASSWORD, AWS_PROFILE, ...)"
            )
    if _URL.match(place):
        if not database:
            raise ConfigError(f"{place} holds objects, but no ledger; write {place}|<URL of its database>")
        return source
    if not place.strip():
        raise ConfigError(f"{source!r} names no bank; give a folder, PLACE|DATABASE or {HUB}owner/name")
    try:
        folder = Path(place).resolve()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{place!r} cannot be the path of a bank ({error}); give another") from error
    return f"{folder}|{database}" if database else str(folder)


def _has_password(url: str) -> bool:
    """In front of the host, or among what is asked of it, in any spelling."""
    try:
        parts = urlsplit(url)
        return bool(parts.password) or any("password" in key.lower() for key, _ in parse_qsl(parts.query))
    except ValueError as error:
        raise ConfigError(f"the source {shown(url)} is no URL ({error}); correct it") from error
