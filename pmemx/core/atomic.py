"""Files that are written whole or not at all, and folders in which that can be done."""

import os
import secrets
from pathlib import Path

from pmemx.core.errors import StorageError


def write_whole(path: Path, data: bytes) -> None:
    """Write or replace a file so that a reader, or a crash at any moment, finds the old bytes or the new ones.

    The bytes reach the disk before the name does. Permissions follow the umask. The folder must exist.
    """
    temporary = path.with_name(f".{path.name[:64]}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    if os.name != "posix":  # Windows gives no handle on a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(folder: Path) -> None:
    """Raises StorageError where files could not be written into a folder, or the folder could not be made.

    Nothing is written. It is as the rights of the nearest folder that exists say: a full disk is not noticed.
    """
    there = next((path for path in (folder, *folder.absolute().parents) if os.path.lexists(path)), folder)
    if not there.is_dir():
        raise StorageError(
            f"{folder} cannot be a folder, since {there} is none; move that away, or choose another place"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise StorageError(f"{there} may not be written by this user; let them write there, or choose another place")
