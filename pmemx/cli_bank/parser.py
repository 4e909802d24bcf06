"""The parser of pmemx bank, put together from the verbs of each file beside it."""

import argparse
from typing import TYPE_CHECKING

from pmemx.cli_bank import changing, checking, governing, living, looking, moving, past, tending
from pmemx.cli_bank.verbs import Verbs, add_common
from pmemx.exit_codes import HELP

if TYPE_CHECKING:
    from pmemx.cli_bank.verbs import Subparsers

EPILOG = f"""{HELP}
A bank asks a principal for a secret where its owner set one. It is read from PMEMX_TOKEN and never from the command line,
which other users of the machine can see; give a database's password in PMEMX_DATABASE for the same reason.
"""


def add_bank(commands: "Subparsers") -> None:
    """Add the `bank` command and its verbs."""
    parser = commands.add_parser(
        "bank",
        help="look into a bank of blocks, change it, govern it, and exchange blocks with others",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common(parser, inherits=False)
    verbs = Verbs(parser.add_subparsers(required=True, metavar="verb", dest="verb"))
    for group in (looking, checking, changing, living, past, governing, moving, tending):
        group.add_verbs(verbs)
