"""What the command line's exit code says to a script: the table from errors to codes."""

from pmemx.core.errors import (
    AccessDenied,
    ConfigError,
    CorruptBlock,
    Diverged,
    IllegalTransition,
    PmemxError,
    PolicyRefused,
    StorageError,
    UnknownAnswer,
    UnknownBlock,
)

DONE, FINDING, REFUSED = 0, 1, 3

_CODES: tuple[tuple[type[PmemxError], int], ...] = (
    (ConfigError, 2),
    (AccessDenied, REFUSED),
    (PolicyRefused, REFUSED),
    (IllegalTransition, REFUSED),
    (UnknownBlock, 4),
    (UnknownAnswer, 4),
    (CorruptBlock, 5),
    (StorageError, 6),
    (Diverged, 7),
    (PmemxError, FINDING),
)

HELP = """exit codes:
  0  done
  1  a finding (verify), a run that failed, or an error with no code of its own
  2  a command, a value or a setting that makes no sense
  3  refused: no permission, a policy, the state of a block, or a no where verbs ask
  4  no such block, version, snapshot or answer
  5  stored bytes are not those that were written
  6  the disk, the ledger or the network refuses
  7  two histories diverged, or another writer was first
"""


def exit_code(error: PmemxError) -> int:
    """The code for an error: that of the first class in the table to which it belongs."""
    return next(code for kind, code in _CODES if isinstance(error, kind))
