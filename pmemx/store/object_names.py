"""How objects are called below the folder blobs, wherever that is, and the check of what is read from there."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from pmemx.core.errors import CorruptBlock, StorageError
from pmemx.core.objects import StoredObject

_OBJECT = re.compile(r"sha256/([0-9a-f]{2})/\1[0-9a-f]{62}")
_LEFTOVER = re.compile(r"sha256/[0-9a-f]{2}/\.[^/\\\0]+\.tmp")


def object_name(sha256: str) -> str:
    """The name of an object below the folder blobs. Raises CorruptBlock for what is no digest, such as a path."""
    name = f"sha256/{sha256[:2]}/{sha256}"
    if not _OBJECT.fullmatch(name):
        raise CorruptBlock(
            f"{sha256[:80]!r} is no sha-256 of 64 lower-case hex digits; restore what refers to it from a copy"
        )
    return name


def checked(place: str, sha256: str, data: bytes | None) -> bytes:
    """The bytes read at a place. Raises CorruptBlock when there are none, or others than the digest says."""
    if data is None:
        raise CorruptBlock(f"{place} is missing; restore it from a copy of the store, or put its block again")
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise CorruptBlock(
            f"{place} holds other bytes than were written (sha-256 {found[:12]}, {len(data)} bytes); "
            "restore it from a copy of the store, or put its block again"
        )
    return data


def objects_among(files: Iterable[StoredObject]) -> Iterator[StoredObject]:
    """Of files that are called by their name below blobs, the objects, called by their digest."""
    return (replace(item, sha256=item.sha256[-64:]) for item in files if _OBJECT.fullmatch(item.sha256))


def leftovers_among(files: Iterable[StoredObject]) -> Iterator[StoredObject]:
    """Of files that are called by their name below blobs, the unfinished writes."""
    return (item for item in files if _LEFTOVER.fullmatch(item.sha256))


def check_leftover(name: str) -> None:
    """Raises StorageError unless a leftover may be called so; no path out of the folder is."""
    if not _LEFTOVER.fullmatch(name):
        raise StorageError(
            f"{name!r} is no unfinished write, which is called sha256/ab/.*.tmp; give a name of leftovers()"
        )
