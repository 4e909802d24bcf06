"""Immutable bytes in files of a local folder, named by their sha-256 and checked whenever they are read."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import final

from pmemx.core.atomic import check_writable, sync_folder, write_whole
from pmemx.core.errors import StorageError
from pmemx.core.objects import Objects, StoredObject
from pmemx.store.object_names import check_leftover, checked, leftovers_among, object_name, objects_among

_ACCESS = "let this user read and write there, or choose another place"
_REMEDIES = {
    errno.ENOSPC: "free that much there, or choose a place on another disk",
    errno.EDQUOT: "free that much of the quota, or choose a place on another disk",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f), or choose a place on another disk",
    errno.EROFS: "mount it writable, or choose another place",
    errno.EACCES: _ACCESS,
    errno.EPERM: _ACCESS,
    errno.EIO: "the disk may be failing: keep a copy of the folder, then check it",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENOTDIR: "move away the file that stands where a folder is needed",
    errno.EISDIR: "move away the folder that stands where a file is needed",
}


@final
@dataclass(frozen=True)
class LocalObjects(Objects):
    """A folder blobs/sha256/ab/<64 hex digits>, made by the first put.

    Only a plain file is an object: a symbolic link in its place is never read, and is replaced by the next put.
    """

    path: Path

    def put(self, data: bytes) -> str:
        """See Objects.put. When it returns, the bytes and every folder name down to them are on the disk."""
        sha256 = hashlib.sha256(data).hexdigest()
        file = self.file(sha256)
        with self._refusals(f"does not take {len(data)} bytes"):
            _make_folder(file.parent)
            if _read(file) != data:
                write_whole(file, data)
            # Also after nothing was written: another process may have made these names and not synced them yet.
            for level in range(4):
                sync_folder(file.parents[level])
        return sha256

    def check_writable(self) -> None:
        """See Objects.check_writable: by the rights on the folder, or on the one in which it would be made."""
        check_writable(self.path / "blobs" / "sha256")

    def get(self, sha256: str) -> bytes:
        """See Objects.get."""
        with self._refusals("cannot be read"):
            return checked(str(self.file(sha256)), sha256, _read(self.file(sha256)))

    def has(self, sha256: str) -> bool:
        """See Objects.has."""
        with self._refusals("cannot be read"):
            return _size(self.file(sha256)) is not None

    def delete(self, sha256: str) -> None:
        """See Objects.delete. When it returns, the name is gone from the disk too."""
        with self._refusals("lets nothing be deleted"):
            _remove(self.file(sha256))

    def listing(self) -> Iterator[StoredObject]:
        """See Objects.listing."""
        yield from objects_among(self._files())

    def leftovers(self) -> Iterator[StoredObject]:
        """See Objects.leftovers. A name is relative to the folder blobs: "sha256/ab/.<name>.tmp"."""
        yield from leftovers_among(self._files())

    def clear_leftover(self, name: str) -> None:
        """See Objects.clear_leftover. Raises StorageError for any other name than leftovers() may give."""
        check_leftover(name)
        with self._refusals("lets nothing be deleted"):
            _remove(self.path / "blobs" / name)

    def file(self, sha256: str) -> Path:
        """Where the bytes of that digest are, or would be."""
        return self.path / "blobs" / object_name(sha256)

    def _files(self) -> Iterator[StoredObject]:
        root = self.path / "blobs" / "sha256"
        with self._refusals("cannot be listed"):
            folders = [entry.name for entry in _scan(root) if entry.is_dir()]
        for folder in folders:
            with self._refusals("cannot be listed"):
                found = [_stored(f"sha256/{folder}/{entry.name}", entry) for entry in _scan(root / folder)]
            yield from (item for item in found if item)

    @contextmanager
    def _refusals(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            remedy = _REMEDIES.get(error.errno or 0, "see that the place is there and answers, then try again")
            raise StorageError(f"{self.path} {what} ({error}); {remedy}") from error


def _read(file: Path) -> bytes | None:
    if _size(file) is None:
        return None
    try:
        return file.read_bytes()
    except FileNotFoundError:  # deleted since
        return None


def _size(file: Path) -> int | None:
    try:
        found = file.lstat()
    except FileNotFoundError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _remove(file: Path) -> None:
    if file.parent.is_dir():
        file.unlink(missing_ok=True)
        sync_folder(file.parent)


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _stored(name: str, entry: os.DirEntry[str]) -> StoredObject | None:
    try:
        found = entry.stat(follow_symlinks=False)
    except FileNotFoundError:  # finished or deleted since
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return StoredObject(name, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))


def _make_folder(folder: Path) -> None:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)
