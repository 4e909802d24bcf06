"""Every error that pmemx raises on purpose: name, value, relation, remedy."""


class PmemxError(Exception):
    """Base of all deliberate errors; the command line prints it without a traceback."""


class ConfigError(PmemxError):
    """A composed config does not fit the code that it would call."""


class DataError(PmemxError):
    """A row, a file or a domain cannot be used for training or evaluation."""


class IncompatibleBlock(PmemxError):
    """A block does not belong to this base model or to this bank."""


class UnsupportedAdapter(PmemxError):
    """An adapter folder holds something that low-rank factors alone cannot represent."""


class CorruptBlock(PmemxError):
    """Stored bytes are not the bytes that were written, or hold NaN or infinity."""


class UnknownBlock(PmemxError):
    """No block of that name, version or digest is in the store."""


class UnknownAnswer(PmemxError):
    """No answer of that id was noted in the bank."""


class StorageError(PmemxError):
    """The disk, the ledger or the network refuses: full, read-only, locked, or of another format."""


class AccessDenied(PmemxError):
    """The principal may not do that to that block."""


class IllegalTransition(PmemxError):
    """A block's state does not allow the change."""


class PolicyRefused(PmemxError):
    """A version does not meet the bounds that a tag demands."""


class Diverged(PmemxError):
    """Two banks hold different histories under one name."""
