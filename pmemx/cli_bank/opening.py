"""The bank that the options of a verb mean."""

import argparse
import os
from typing import TYPE_CHECKING

from pmemx.core.errors import ConfigError, UnknownBlock

if TYPE_CHECKING:
    from pmemx.store.bank import Bank
    from pmemx.store.snapshots import Moment


def place(options: argparse.Namespace) -> str:
    """Where the bank is."""
    return options.bank or os.environ.get("PMEMX_BANK", "") or "bank"


def open_bank(options: argparse.Namespace) -> "Bank":
    """The bank, as of --at where that is given. Nothing is made: one that does not exist reads as empty."""
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
