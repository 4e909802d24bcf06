"""Verbs that tend a bank as a whole: migrate, rebuild, salvage and serve."""

import argparse
import contextlib
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from pmemx.cli_bank.opening import open_bank, open_existing, place
from pmemx.cli_bank.printing import print_json, print_line
from pmemx.cli_bank.verbs import Verbs
from pmemx.core.errors import UnknownBlock
from pmemx.exit_codes import DONE

PAGE_TOKEN = "PMEMX_PAGE_TOKEN"


def add_verbs(verbs: Verbs) -> None:
    """Declare them."""
    verbs.add("migrate", _migrate, "bring a bank that an earlier pmemx wrote to the format and the schema of this one")
    verbs.add("rebuild", _rebuild, "make every table of the ledger again from its journal")
    verbs.add("salvage", _salvage, "commit anew what the manifests of a bank without a ledger tell of")
    serving = verbs.add(
        "serve", _serve, "show the bank as a page in a browser, read-only unless --writable, until interrupted"
    )
    serving.add_argument("--host", default="127.0.0.1", help="where to listen (default: this machine alone, 127.0.0.1)")
    serving.add_argument("--port", type=int, default=8765, help="0 for any that is free (default: 8765)")
    serving.add_argument(
        "--writable", action="store_true", help="let the page make changes, as the principal who serves it"
    )
    serving.add_argument("--record", type=Path, metavar="FOLDER", help="a run whose routing is shown")
    serving.add_argument(
        "--with-token",
        action="store_true",
        help=f"make a secret and let in only who shows it; a lasting one is read from {PAGE_TOKEN}",
    )


def _migrate(options: argparse.Namespace) -> int:
    from pmemx.store.migrate import migrate

    return _tell_steps(options, migrate(open_bank(options)), "nothing is to be migrated")


def _rebuild(options: argparse.Namespace) -> int:
    from pmemx.store.rebuild import rebuild

    return _tell_steps(options, rebuild(open_bank(options)), "every table is as the journal tells")


def _salvage(options: argparse.Namespace) -> int:
    from pmemx.store.rebuild import salvage

    bank = open_bank(options)
    if not any(True for _ in bank.objects.listing()):
        raise UnknownBlock(f"{place(options)} holds no manifest; say --bank where they are")
    return _tell_steps(options, salvage(bank), "no manifest is whole")


def _tell_steps(options: argparse.Namespace, lines: Sequence[str], nothing: str) -> int:
    if options.json:
        print_json(list(lines))
    else:
        for line in lines or [nothing]:
            print_line(line)
    return DONE


def _serve(options: argparse.Namespace) -> int:
    from pmemx.page.serve import serve

    def announce(address: str) -> None:
        if options.json:
            print_json({"address": address})
        else:
            print_line(address)
        sys.stdout.flush()

    token = os.environ.get(PAGE_TOKEN, "") or (secrets.token_urlsafe(32) if options.with_token else "")
    # An interrupt is the way to end it.
    with contextlib.suppress(KeyboardInterrupt):
        serve(
            open_existing(options),
            host=options.host,
            port=options.port,
            token=token,
            writable=options.writable,
            record=options.record,
            announce=announce,
        )
    return DONE
