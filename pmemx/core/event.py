"""One entry of a bank's journal: who did what to which block, chained by hash to the entry before it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from pmemx.core.canonical import canonical_json
from pmemx.core.clock import from_microseconds

GENESIS = "0" * 64
"""What stands in the place of the hash before the first entry."""


class Action(StrEnum):
    """What an entry reports. Those up to SUBSCRIBE change the bank; the others only tell what happened."""

    COMMIT = "commit"
    TAG = "tag"
    UNTAG = "untag"
    MOVE = "move"
    USE = "use"
    EVALUATE = "evaluate"
    ENROL = "enrol"
    REVOKE = "revoke"
    GRANT = "grant"
    WITHDRAW = "withdraw"
    PROTECT = "protect"
    UNPROTECT = "unprotect"
    SNAPSHOT = "snapshot"
    DROP = "drop"
    SIGN = "sign"
    ANSWER = "answer"
    SUBSCRIBE = "subscribe"
    UNSUBSCRIBE = "unsubscribe"
    READ = "read"
    EXPORT = "export"
    DENIED = "denied"
    REFUSED = "refused"
    COLLECT = "collect"
    RESTORE = "restore"
    PULL = "pull"


@dataclass(frozen=True)
class Event:
    """An entry. seq counts 1, 2, ... without a gap; at: microseconds since 1970 (UTC), never less than the entry before.

    namespace and name: the block it is about, empty where it is about the bank. detail: JSON types, by action.
    """

    seq: int
    at: int
    principal: str
    action: str
    namespace: str
    name: str
    detail: Mapping[str, Any]
    previous: str

    @property
    def hash(self) -> str:
        """sha-256 over every field, the hash of the entry before included."""
        values = [self.seq, self.at, self.principal, self.action, self.namespace, self.name, self.detail, self.previous]
        return hashlib.sha256(canonical_json(values).encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def time(self) -> datetime:
        """When, in UTC."""
        return from_microseconds(self.at)
