"""The bank that the options of a verb mean."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pmemx.core.errors import ConfigError, UnknownBlock

if TYPE_CHECKING:
    from pmemx.store.bank import Bank
    from pmemx.store.snapshots import Moment


DEFAULT = "outputs/bank"
"""Where a bank is that nobody names: that of runs with seed 0 at full scale (bank_folder in conf/run.yaml)."""
_EARLIER = "bank"
"""The same of pmemx 0.1.0."""
_BEGINNING = frozenset({"import", "pull", "subscribe", "enrol"})
"""Verbs with which a bank may begin."""


def place(options: argparse.Namespace) -> str:
    """Where the bank is."""
    return options.bank or os.environ.get("PMEMX_BANK", "") or DEFAULT


def open_bank(options: argparse.Namespace) -> "Bank":
    """The bank, as of --at where that is given. Nothing is made.

    Raises UnknownBlock where its folder does not exist, for any verb but those with which a bank may begin; a folder
    without a ledger reads as an empty bank.
    """
    if options.verb not in _BEGINNING:
        _require_folder(options)
    from pmemx.store.bank import Bank
    from pmemx.store.references import SHARED
    from pmemx.store.snapshots import Snapshots

    bank = Bank(
        place(options),
        database=_database(options),
        cold=options.cold,
        namespace=options.namespace or SHARED,
        principal=options.principal,
    )
    return Snapshots(bank).view(moment(bank, options.at)) if options.at else bank


def open_existing(options: argparse.Namespace) -> "Bank":
    """The same for a verb that only makes sense in a bank that exists. Raises UnknownBlock for any other."""
    bank = open_bank(options)
    if not bank.ledger.bank_id():
        raise UnknownBlock(f"{place(options)} holds no block; say --bank where it is, or import or pull into it first")
    return bank


def moment(bank: "Bank", text: str) -> "Moment":
    """The moment that a text means: the number of an entry, a snapshot, or a time. Raises UnknownBlock for none of them."""
    from datetime import UTC, datetime

    from pmemx.store.snapshots import Snapshots

    if text.isdecimal():
        return int(text)
    known = [snapshot.name for snapshot in Snapshots(bank).list()]
    if text in known:
        return text
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        listed = ", ".join(known) or "none"
        raise UnknownBlock(
            f"{text!r} is no snapshot, no entry and no time; the snapshots are: {listed}; write a time as 2026-01-31T12:00"
        ) from error
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _require_folder(options: argparse.Namespace) -> None:
    where = place(options)
    if "://" in where or _database(options) or Path(where).exists():
        return
    remedy = "say --bank where the bank is, or set PMEMX_BANK; `pmemx run` makes one, import and pull begin one"
    if where == DEFAULT and Path(_EARLIER).is_dir():
        remedy = (
            f"there is a folder ./{_EARLIER}, where pmemx 0.1.0 looked: say --bank {_EARLIER}, or move it to {DEFAULT}"
        )
    raise UnknownBlock(f"the folder {where} does not exist; {remedy}")


def _database(options: argparse.Namespace) -> str:
    if options.database is not None:
        return options.database
    # A folder that was named holds its own ledger: the environment speaks of the bank of every day.
    database = "" if options.bank else os.environ.get("PMEMX_DATABASE", "")
    if not database and "://" in place(options):
        raise ConfigError(
            f"{place(options)} can hold the objects of a bank, but not its ledger; give that with --database or PMEMX_DATABASE"
        )
    return database
