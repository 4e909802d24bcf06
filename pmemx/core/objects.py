"""The interface of immutable bytes that are named by their sha-256; imports no torch."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class StoredObject:
    """What a listing tells of an object: its sha-256 (64 hex digits), its bytes, and when it was last written (UTC)."""

    sha256: str
    size: int
    modified: datetime


class Objects(ABC):
    """Content-addressed bytes. An object is visible only when it is whole and, where the place can say so, on the disk.

    Every method raises StorageError, with the place and the cause, when the place refuses (full, read-only, unreachable).
    """

    @abstractmethod
    def put(self, data: bytes) -> str:
        """Store bytes, unless they are there and sound; returns their sha-256. Damaged ones are replaced."""

    @abstractmethod
    def check_writable(self) -> None:
        """Raises StorageError where no put could be done, as far as that can be told without one."""

    @abstractmethod
    def get(self, sha256: str) -> bytes:
        """Raises CorruptBlock when the object is gone or its bytes are not those that were put."""

    @abstractmethod
    def has(self, sha256: str) -> bool:
        """Whether the object is there, without reading it."""

    @abstractmethod
    def delete(self, sha256: str) -> None:
        """Remove an object; one that is not there is no error."""

    @abstractmethod
    def listing(self) -> Iterator[StoredObject]:
        """Every object, in no order; a place that does not exist yet holds none. Unfinished writes are not among them."""

    @abstractmethod
    def leftovers(self) -> Iterator[StoredObject]:
        """Unfinished writes that a crash left, with the name of the file in place of a sha-256."""

    @abstractmethod
    def clear_leftover(self, name: str) -> None:
        """Remove one of the leftovers."""
