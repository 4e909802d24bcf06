"""Asking before what cannot be taken back, or should not happen by a slip."""

import argparse
import sys

from pmemx.cli_bank.printing import visible
from pmemx.core.errors import ConfigError


def confirm(options: argparse.Namespace, question: str) -> bool:
    """Whether to go on: --yes says so, else whoever sits at the terminal. Raises ConfigError where nobody does."""
    if options.yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigError(f"{visible(question)} Nobody is there to ask; say --yes")
    # On the standard error, so that the output stays one document.
    print(f"{visible(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    try:
        agreed = sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        agreed = False
    if not agreed:
        print("nothing was changed", file=sys.stderr)
    return agreed
