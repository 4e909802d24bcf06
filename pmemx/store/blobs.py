"""Immutable bytes in files that are named by their sha-256 and checked whenever they are read."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pmemx.core.atomic import write_whole
from pmemx.core.errors import CorruptBlock


@dataclass(frozen=True)
class Blobs:
    """A folder blobs/sha256/ab/<64 hex digits>."""

    path: Path

    def file(self, sha256: str) -> Path:
        """Where the bytes of that digest are, or would be."""
        return self.path / "blobs" / "sha256" / sha256[:2] / sha256

    def put(self, data: bytes) -> str:
        """Store bytes, unless they are there and sound; returns their sha-256."""
        sha256 = hashlib.sha256(data).hexdigest()
        file = self.file(sha256)
        if not (file.is_file() and file.read_bytes() == data):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, data)
        return sha256

    def get(self, sha256: str) -> bytes:
        """Raises CorruptBlock when the file is gone or holds other bytes."""
        file = self.file(sha256)
        if not file.is_file():
            raise CorruptBlock(f"{file} is missing; restore it from a copy of the store, or put its block again")
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CorruptBlock(
                f"{file} holds other bytes than were written (sha-256 {hashlib.sha256(data).hexdigest()[:12]}, "
                f"{len(data)} bytes); restore it from a copy of the store, or put its block again"
            )
        return data
