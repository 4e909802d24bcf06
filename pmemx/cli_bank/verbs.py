"""How a verb is declared: its parser, the options that every verb has, and the function that does it."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pmemx.cli_bank.opening import DEFAULT

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

Run = Callable[[argparse.Namespace], int]
"""What a verb does with its options; returns the exit code."""

REFERENCE = 'a name, "name@3", "name@tag", "team:x/name", or a digest'
MOMENT = "a snapshot, the number of an entry of the journal, or an ISO time (UTC where it names no zone)"


@dataclass(frozen=True)
class Verbs:
    """The verbs under one command."""

    parsers: "Subparsers"

    def add(self, name: str, run: Run, sentence: str) -> argparse.ArgumentParser:
        """Declare a verb; its own arguments are the caller's to add."""
        parser = self.parsers.add_parser(name, help=sentence, description=sentence)
        add_common(parser, inherits=True)
        parser.set_defaults(command=run)
        return parser


def add_common(parser: argparse.ArgumentParser, *, inherits: bool) -> None:
    """The options of every verb. inherits: what is not said here is what was said before the verb."""

    def default(value: object) -> object:
        return argparse.SUPPRESS if inherits else value

    group = parser.add_argument_group("options of every verb")
    group.add_argument(
        "--bank",
        metavar="PLACE",
        default=default(None),
        help=f"folder or URL of the bank (default: PMEMX_BANK, else {DEFAULT})",
    )
    group.add_argument(
        "--database",
        metavar="URL",
        default=default(None),
        help="ledger on a server (default: PMEMX_DATABASE where no --bank is given, else a file in the folder)",
    )
    group.add_argument("--cold", metavar="PLACE", default=default(""), help="second place, for what is archived")
    group.add_argument(
        "--as",
        dest="principal",
        metavar="PRINCIPAL",
        default=default(""),
        help="who acts (default: PMEMX_PRINCIPAL, else the system's user); a token is read from PMEMX_TOKEN alone",
    )
    group.add_argument(
        "--namespace",
        default=default(""),
        help='what a name without one is in: "shared" (the default), "user:<word>" or "team:<word>"',
    )
    group.add_argument("--at", metavar="MOMENT", default=default(""), help=f"look at the bank as it was then: {MOMENT}")
    group.add_argument("--json", action="store_true", default=default(False), help="print one JSON document")


def add_yes(parser: argparse.ArgumentParser, sentence: str, *, dry: str = "") -> None:
    """The consent that a dangerous verb asks for. dry: what --dry-run does; a verb without it has no such option."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--yes", action="store_true", help=sentence)
    if dry:
        group.add_argument("--dry-run", action="store_true", help=dry)


def add_reason(parser: argparse.ArgumentParser) -> None:
    """Why, for the journal."""
    parser.add_argument("--reason", default="", help="why, for whoever reads the journal")


def add_message(parser: argparse.ArgumentParser) -> None:
    """Why, for the history of a block."""
    parser.add_argument("--message", default="", help="why, for whoever reads the history")
