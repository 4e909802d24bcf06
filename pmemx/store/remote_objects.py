"""Immutable bytes in a bucket or on a server that fsspec reaches, in the layout of a local folder."""

import hashlib
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast, final

from pmemx.core.errors import StorageError
from pmemx.core.extras import install
from pmemx.core.objects import Objects, StoredObject
from pmemx.store.object_names import check_leftover, checked, leftovers_among, object_name, objects_among
from pmemx.store.shown import shown

if TYPE_CHECKING:
    import fsspec

# Their makers document that a name shows all bytes of one upload or none; memory:// sets one entry of a dict.
_SHOWS_WHOLE_UPLOADS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "memory"})
# What backends raise past OSError. A class of a module that nobody has loaded cannot have been raised.
_BACKEND_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
    ("aiohttp", "ClientError"),
    ("paramiko", "SSHException"),
)
_TIMES = ("LastModified", "last_modified", "mtime", "created")


@final
@dataclass(frozen=True)
class RemoteObjects(Objects):
    """A URL that fsspec knows, such as s3://bucket/banks/one; below it blobs/sha256/ab/<64 hex digits>.

    On an object store a put is one upload to the final name, whole by the store's own promise. Anywhere else (sftp, smb,
    hdfs) it is an upload to a temporary name, then a move; when that fails, the temporary stays, among the leftovers.
    What such a server keeps in memory is its own affair: nothing there can be synced from here.
    Credentials and endpoint come from the environment, as the backend reads it (AWS_PROFILE, AWS_ENDPOINT_URL...).
    In a bucket with versioning, deleted bytes stay until a lifecycle rule removes old versions; parts of an interrupted
    upload above 100 MiB, which no listing shows, until one aborts incomplete uploads.
    """

    url: str

    def put(self, data: bytes) -> str:
        """See Objects.put. What is there already is read to be compared."""
        sha256 = hashlib.sha256(data).hexdigest()
        with self._opened(f"does not take {len(data)} bytes") as (fs, blobs):
            file = f"{blobs}/{object_name(sha256)}"
            held = _read(fs, file)
            if held == data:
                return sha256
            if self._scheme in _SHOWS_WHOLE_UPLOADS:
                fs.pipe_file(file, data)
            else:
                _move_in(fs, file, data, replacing=held is not None)
        return sha256

    def check_writable(self) -> None:
        """See Objects.check_writable: the place is reached and answers; what one may write there it does not tell."""
        self.has("0" * 64)

    def get(self, sha256: str) -> bytes:
        """See Objects.get."""
        with self._opened("cannot be read") as (fs, blobs):
            data = _read(fs, f"{blobs}/{object_name(sha256)}")
        return checked(f"{self._place}/blobs/{object_name(sha256)}", sha256, data)

    def has(self, sha256: str) -> bool:
        """See Objects.has."""
        with self._opened("cannot be read") as (fs, blobs):
            try:
                return fs.info(f"{blobs}/{object_name(sha256)}")["type"] == "file"
            except FileNotFoundError:
                return False

    def delete(self, sha256: str) -> None:
        """See Objects.delete."""
        self._remove(object_name(sha256))

    def listing(self) -> Iterator[StoredObject]:
        """See Objects.listing."""
        yield from objects_among(self._files())

    def leftovers(self) -> Iterator[StoredObject]:
        """See Objects.leftovers. A name is relative to the folder blobs: "sha256/ab/.<name>.tmp"."""
        yield from leftovers_among(self._files())

    def clear_leftover(self, name: str) -> None:
        """See Objects.clear_leftover. Raises StorageError for any other name than leftovers() may give."""
        check_leftover(name)
        self._remove(name)

    @property
    def _scheme(self) -> str:
        return self.url.partition("://")[0]

    @property
    def _place(self) -> str:
        """The URL without its password, for messages."""
        return shown(self.url).rstrip("/")

    def _remove(self, name: str) -> None:
        with self._opened("lets nothing be deleted") as (fs, blobs):
            try:
                fs.rm_file(f"{blobs}/{name}")
            except FileNotFoundError:
                return

    def _files(self) -> list[StoredObject]:
        with self._opened("cannot be listed") as (fs, blobs):
            return [
                StoredObject(name.removeprefix(f"{blobs}/"), info["size"], _modified(info))
                for name, info in self._find(fs, blobs).items()
                if info["type"] == "file"  # s3fs finds an empty folder in itself
            ]

    def _find(self, fs: "fsspec.AbstractFileSystem", blobs: str) -> Mapping[str, Any]:
        try:
            fs.info(blobs)
        except FileNotFoundError:
            return {}
        # Where find walks folders it would otherwise leave out, in silence, those that it may not read.
        options: dict[str, Any] = {} if self._scheme in _SHOWS_WHOLE_UPLOADS else {"on_error": "raise"}
        return dict(fs.find(blobs, detail=True, **options))

    @contextmanager
    def _opened(self, refusal: str) -> Iterator[tuple["fsspec.AbstractFileSystem", str]]:
        """The file system and its folder blobs; whatever is raised inside becomes a StorageError."""
        try:
            from fsspec.core import url_to_fs  # here, so that a bank without remote places need not wait for it

            fs, root = url_to_fs(self.url)
            fs.invalidate_cache()  # of listings: others write there too
            yield fs, f"{root.rstrip('/')}/blobs"
        except ImportError as error:
            remedy = f"run: {install('s3')}" if self._scheme in ("s3", "s3a") else "install what that names"
            raise StorageError(f"{self._place} {refusal} ({error}); {remedy}") from error
        except PermissionError as error:
            raise StorageError(
                f"{self._place} {refusal} (not permitted: {error}); give credentials that may list, read, write and delete"
            ) from error
        except FileNotFoundError as error:
            raise StorageError(
                f"{self._place} {refusal} (not found: {error}); make the bucket or folder first"
            ) from error
        except (OSError, EOFError, ValueError, NotImplementedError, *_loaded_errors()) as error:
            raise StorageError(
                f"{self._place} {refusal} ({type(error).__name__}: {error}); "
                "check the URL, the credentials and the network, then try again"
            ) from error


def _loaded_errors() -> Iterator[type[Exception]]:
    return (getattr(sys.modules[module], name) for module, name in _BACKEND_ERRORS if module in sys.modules)


def _read(fs: "fsspec.AbstractFileSystem", file: str) -> bytes | None:
    try:
        return cast("bytes", fs.cat_file(file))
    except FileNotFoundError:
        return None


def _move_in(fs: "fsspec.AbstractFileSystem", file: str, data: bytes, *, replacing: bool) -> None:
    folder, _, name = file.rpartition("/")
    temporary = f"{folder}/.{name}.{secrets.token_hex(6)}.tmp"
    fs.makedirs(folder, exist_ok=True)
    fs.pipe_file(temporary, data)
    if replacing:  # smb and hdfs move onto no other file
        fs.rm_file(file)
    fs.mv(temporary, file)


def _modified(info: Mapping[str, Any]) -> datetime:
    """UTC; fsspec means UTC by a time without a zone. Raises ValueError where the place tells no time."""
    for key in _TIMES:
        value = info.get(key)
        if isinstance(value, (int, float)):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, datetime):
            return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    raise ValueError(f"no time of writing in {sorted(info)}")
