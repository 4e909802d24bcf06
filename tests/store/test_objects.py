"""Objects in a folder, in memory, behind a move and in a bucket obey one contract; a folder also faults and crashes."""

import errno
import hashlib
import io
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import fsspec
import pytest
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import _registry
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmemx.core.errors import ConfigError, CorruptBlock, StorageError
from pmemx.core.extras import install
from pmemx.core.objects import Objects
from pmemx.store.local_objects import LocalObjects
from pmemx.store.places import open_objects
from pmemx.store.remote_objects import RemoteObjects

CONTENTS = (b"", b"a", b"law", bytes(range(256)) * 40)
SHARED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
LEFTOVER = f"sha256/ab/.{'ab' * 32}.0123456789ab.tmp"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a disk or become another user")


@dataclass(frozen=True)
class Place:
    """Objects and a second way to the same bytes, which shares no cache with the first."""

    objects: Objects
    url: str

    @cached_property
    def other(self) -> tuple[Any, str]:
        return url_to_fs(self.url, skip_instance_cache=True)

    @property
    def examples(self) -> int:
        return 8 if self.url.startswith("s3") else 50

    def reach(self, sha256: str) -> tuple[Any, str]:
        return self.reach_name(f"sha256/{sha256[:2]}/{sha256}")

    def reach_name(self, name: str) -> tuple[Any, str]:
        fs, root = self.other
        fs.invalidate_cache()
        return fs, f"{root}/blobs/{name}"

    def write(self, name: str, data: bytes) -> None:
        fs, file = self.reach_name(name)
        if not self.url.startswith("s3"):
            fs.makedirs(file.rpartition("/")[0], exist_ok=True)
        fs.pipe_file(file, data)

    def damage(self, sha256: str) -> None:
        self.write(f"sha256/{sha256[:2]}/{sha256}", b"other bytes")

    def stamp(self, sha256: str) -> object:
        """Another value after every write, though of the same bytes."""
        fs, file = self.reach(sha256)
        info = fs.info(file)
        return info["VersionId"] if self.url.startswith("s3") else (info["created"], info.get("ino"))


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket that keeps every version, on a server in this process."""
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "dummy", "AWS_SECRET_ACCESS_KEY": "dummy",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        client = boto3.client("s3")
        client.create_bucket(Bucket="banks")
        client.put_bucket_versioning(Bucket="banks", VersioningConfiguration={"Status": "Enabled"})
        yield "s3://banks"
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


@pytest.fixture(params=["folder", "memory", "moved", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        return Place(LocalObjects(tmp_path / "bank"), f"file://{tmp_path}/bank")
    if request.param == "moved":  # a scheme of which nobody promises whole uploads
        return Place(RemoteObjects(f"local://{tmp_path}/bank"), f"local://{tmp_path}/bank")
    base = request.getfixturevalue("bucket") if request.param == "bucket" else "memory://banks"
    return Place(RemoteObjects(f"{base}/{tmp_path.name}"), f"{base}/{tmp_path.name}")


@pytest.fixture
def folder(tmp_path: Path) -> LocalObjects:
    return LocalObjects(tmp_path / "bank")


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(StorageError) as caught:
        work()
    return str(caught.value)


def empty(objects: Objects) -> None:
    for item in list(objects.listing()):
        objects.delete(item.sha256)


def test_a_place_that_does_not_exist_holds_nothing_and_is_not_made_by_looking(place: Place) -> None:
    absent = "0" * 64
    place.objects.delete(absent)
    place.objects.clear_leftover(LEFTOVER)
    assert (list(place.objects.listing()), list(place.objects.leftovers()), place.objects.has(absent)) == (
        [],
        [],
        False,
    )
    with pytest.raises(CorruptBlock, match="missing"):
        place.objects.get(absent)
    fs, file = place.reach(absent)
    assert not fs.exists(file.rpartition("/blobs/")[0])


def test_what_is_put_is_got(place: Place) -> None:
    @settings(SHARED, max_examples=place.examples)
    @given(st.binary(max_size=2000))
    def law(data: bytes) -> None:
        sha256 = place.objects.put(data)
        assert sha256 == hashlib.sha256(data).hexdigest()
        assert place.objects.has(sha256)
        assert place.objects.get(sha256) == data
        fs, file = place.reach(sha256)
        assert fs.cat_file(file) == data

    law()


def test_listing_equals_a_dictionary(place: Place) -> None:
    @settings(SHARED, max_examples=place.examples)
    @given(st.lists(st.tuples(st.sampled_from(["put", "delete", "damage"]), st.sampled_from(CONTENTS)), max_size=12))
    def law(steps: list[tuple[str, bytes]]) -> None:
        empty(place.objects)
        model: dict[str, bytes] = {}
        for step, data in steps:
            sha256 = hashlib.sha256(data).hexdigest()
            if step == "put":
                model[place.objects.put(data)] = data
            elif step == "delete":
                place.objects.delete(sha256)
                model.pop(sha256, None)
            elif sha256 in model:
                place.damage(sha256)
                model[sha256] = b"other bytes"
        assert {item.sha256: item.size for item in place.objects.listing()} == {k: len(v) for k, v in model.items()}
        for data in CONTENTS:
            sha256 = hashlib.sha256(data).hexdigest()
            assert place.objects.has(sha256) == (sha256 in model)
            if model.get(sha256) == data:
                assert place.objects.get(sha256) == data
            else:
                with pytest.raises(CorruptBlock):
                    place.objects.get(sha256)

    law()


def test_putting_again_writes_nothing(place: Place) -> None:
    sha256 = place.objects.put(b"law")
    before = place.stamp(sha256)
    assert place.objects.put(b"law") == sha256
    assert place.stamp(sha256) == before
    place.damage(sha256)
    assert place.stamp(sha256) != before  # the stamp would have told


@pytest.mark.parametrize("bad", [b"", b"lav", b"law " * 999])
def test_damage_is_noticed_and_mended_by_putting_again(bad: bytes, place: Place) -> None:
    sha256 = place.objects.put(b"law")
    place.write(f"sha256/{sha256[:2]}/{sha256}", bad)
    with pytest.raises(CorruptBlock, match=f"other bytes .* {len(bad)} bytes"):
        place.objects.get(sha256)
    assert place.objects.put(b"law") == sha256
    assert place.objects.get(sha256) == b"law"
    assert list(place.objects.leftovers()) == []


def test_a_listing_tells_the_time_of_writing_in_utc(place: Place) -> None:
    place.objects.put(b"law")
    (item,) = place.objects.listing()
    assert item.modified.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - item.modified) < timedelta(minutes=1)


def test_only_objects_are_listed_as_objects_and_only_temporaries_as_leftovers(place: Place) -> None:
    sha256 = place.objects.put(b"law")
    strays = (LEFTOVER, "sha256/ab/README", f"sha256/ab/{'cd' * 32}", f"sha256/zz/{'ab' * 32}", "sha256/ab/.tmp")
    for name in strays:
        place.write(name, b"stray")
    assert [item.sha256 for item in place.objects.listing()] == [sha256]
    assert [(item.sha256, item.size) for item in place.objects.leftovers()] == [(LEFTOVER, 5)]
    place.objects.clear_leftover(LEFTOVER)
    assert list(place.objects.leftovers()) == []
    assert place.objects.get(sha256) == b"law"


@pytest.mark.parametrize(
    "name",
    ["", "..", "sha256/ab/../../../x.tmp", "/etc/.x.tmp", "../.x.tmp", "sha256/../.x.tmp", "sha256/ab/.x.tmp/../../.y.tmp",
     "sha256/ab/.\\..\\x.tmp", "sha256/ab/.x\0.tmp", f"sha256/ab/{'ab' * 32}", f"{LEFTOVER}\n"],
)  # fmt: skip
def test_what_leads_out_of_the_folder_is_no_leftover(name: str, place: Place) -> None:
    assert "no unfinished write" in refusal(lambda: place.objects.clear_leftover(name))


@pytest.mark.parametrize("sha256", ["", "0" * 63, "A" * 64, "../" * 21 + "x", "0" * 64 + "\n", "0" * 62 + "/x"])
def test_what_is_no_digest_reaches_no_file(sha256: str, place: Place) -> None:
    for ask in (place.objects.get, place.objects.has, place.objects.delete):
        with pytest.raises(CorruptBlock, match="no sha-256"):
            ask(sha256)


def test_a_write_of_another_process_is_seen_after_a_listing(place: Place) -> None:
    place.objects.put(b"law")
    assert len(list(place.objects.listing())) == 1
    sha256 = hashlib.sha256(b"new").hexdigest()
    assert not place.objects.has(sha256)
    place.write(f"sha256/{sha256[:2]}/{sha256}", b"new")
    assert place.objects.has(sha256)
    assert {item.sha256 for item in place.objects.listing()} == {sha256, hashlib.sha256(b"law").hexdigest()}
    place.damage(sha256)
    with pytest.raises(CorruptBlock, match="11 bytes"):
        place.objects.get(sha256)


# --- a folder, and what disks and crashes do to it


class Torn:
    """A file of which only the first half of a write arrives."""

    def __init__(self, file: IO[bytes], fail: Callable[[], None]) -> None:
        self.file, self.fail = file, fail

    def __enter__(self) -> "Torn":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> None:
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        self.fail()
        self.file.write(data[len(data) // 2 :])

    def flush(self) -> None:
        self.file.flush()

    def fileno(self) -> int:
        return self.file.fileno()


def arm(patch: pytest.MonkeyPatch, number: int, fail: Callable[[], None]) -> Callable[[], bool]:
    """Fail at one call, counted from 1, of all that change or sync a disk; returns whether it came to that."""
    left = number

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            fail()

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **named: Any) -> Any:
            count()
            return call(*args, **named)

        return counting

    really_open = io.open

    def opened(file: Any, mode: str = "r", *rest: Any) -> Any:
        return Torn(really_open(file, mode), count) if "x" in mode else really_open(file, mode, *rest)

    for name in ("mkdir", "open", "fsync", "replace"):
        patch.setattr(os, name, counted(getattr(os, name)))
    patch.setattr(io, "open", opened)
    return lambda: left <= 0


def check_nothing_half(path: Path, new: bytes, kept: str) -> None:
    objects = LocalObjects(path)
    file = objects.file(hashlib.sha256(new).hexdigest())
    assert not file.exists() or file.read_bytes() in (new, b"bad")
    if kept:
        assert objects.get(kept) == b"kept"


def break_io() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("before", ["nothing", "another object", "the object, damaged"])
def test_a_fault_at_any_step_leaves_nothing_half_visible_and_nothing_behind(
    before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, number, happened = b"new" * 1000, 0, True
    sha256 = hashlib.sha256(new).hexdigest()
    while happened:
        number += 1
        objects = LocalObjects(tmp_path / str(number) / "bank")
        kept = objects.put(b"kept") if before != "nothing" else ""
        if before == "the object, damaged":
            objects.put(new)
            objects.file(sha256).write_bytes(b"bad")
        with monkeypatch.context() as patch:
            fired = arm(patch, number, break_io)
            said = ""
            try:
                objects.put(new)
            except StorageError as error:
                said = str(error)
            happened = fired()
        assert said.startswith(f"{objects.path} does not take 3000 bytes ([Errno 5] Input/output error") == happened
        check_nothing_half(objects.path, new, kept)
        assert list(objects.leftovers()) == []
        assert objects.get(objects.put(new)) == new
    # mkdir, open, fsync for each missing folder; write, fsync, replace, open, fsync; open, fsync for four folders
    missing = {"nothing": 5, "another object": 1, "the object, damaged": 0}[before]
    assert number - 1 == 3 * missing + 5 + 8


def test_a_crash_at_any_step_leaves_at_most_a_leftover_that_can_be_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, number, happened, leftovers = b"new" * 1000, 0, True, 0
    while happened:
        number += 1
        objects = LocalObjects(tmp_path / str(number) / "bank")
        kept = objects.put(b"kept")
        happened = in_child(lambda o=objects, n=number: put_and_crash(o, new, n, monkeypatch)) != "done"
        check_nothing_half(objects.path, new, kept)
        for item in list(objects.leftovers()):
            leftovers += 1
            assert item.size in (1500, 3000)
            objects.clear_leftover(item.sha256)
        assert objects.get(objects.put(new)) == new
        assert list(objects.leftovers()) == []
        assert len(list(objects.listing())) == 2
    assert (number - 1, leftovers) == (16, 3)  # torn, unsynced, unnamed


def put_and_crash(objects: LocalObjects, data: bytes, number: int, patch: pytest.MonkeyPatch) -> str:
    arm(patch, number, lambda: os._exit(1))
    objects.put(data)
    return "done"


def in_child(work: Callable[[], str]) -> str:
    """What the work returns in a process of its own; empty when it dies."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, work().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of one mebibyte."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting a disk is refused here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


@as_root
def test_a_full_disk_is_named_with_what_it_lacks_and_keeps_what_it_held(disk: Path) -> None:
    objects = LocalObjects(disk / "bank")
    held = objects.put(b"a" * 300_000)
    said = refusal(lambda: objects.put(b"b" * 2_000_000))
    assert f"{objects.path} does not take 2000000 bytes" in said
    assert "No space left on device" in said
    assert "free that much" in said
    assert [item.sha256 for item in objects.listing()] == [held]
    assert list(objects.leftovers()) == []
    assert objects.get(held) == b"a" * 300_000
    refusal(lambda: objects.put(b"c" * 900_000))
    objects.delete(held)
    assert objects.get(objects.put(b"c" * 900_000)) == b"c" * 900_000


@as_root
def test_a_read_only_disk_is_read_and_says_so_when_written(disk: Path) -> None:
    objects = LocalObjects(disk / "bank")
    held = objects.put(b"law")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert (objects.get(held), objects.put(b"law")) == (b"law", held)
    assert "Read-only file system" in refusal(lambda: objects.put(b"new"))
    assert "mount it writable" in refusal(lambda: objects.delete(held))
    assert [item.sha256 for item in objects.listing()] == [held]


@as_root
def test_another_user_reads_and_is_told_that_writing_is_not_theirs() -> None:
    path = Path(tempfile.mkdtemp(dir="/tmp"))  # tmp_path is closed to other users
    path.chmod(0o755)
    objects = LocalObjects(path / "bank")
    held = objects.put(b"law")

    def as_nobody() -> str:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        assert (objects.get(held), objects.has(held), objects.put(b"law")) == (b"law", True, held)
        assert [item.sha256 for item in objects.listing()] == [held]
        absent = refusal(lambda: LocalObjects(path / "other").put(b"law"))
        return "\n".join([refusal(lambda: objects.put(b"new")), refusal(lambda: objects.delete(held)), absent])

    said = in_child(as_nobody).splitlines()
    assert ["Permission denied" in line and "let this user" in line for line in said] == [True] * 3
    assert objects.get(held) == b"law"
    assert [item.name for item in path.iterdir()] == ["bank"]
    shutil.rmtree(path)


def test_a_limit_on_the_size_of_files_is_named(folder: LocalObjects) -> None:
    def limited() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        return refusal(lambda: folder.put(b"x" * 1001)) + folder.put(b"x" * 1000)

    said = in_child(limited)
    assert "File too large" in said
    assert "ulimit -f" in said
    assert [item.size for item in folder.listing()] == [1000]
    assert list(folder.leftovers()) == []


def test_permissions_follow_the_umask(folder: LocalObjects) -> None:
    before = os.umask(0o027)
    try:
        sha256 = folder.put(b"law")
    finally:
        os.umask(before)
    file = folder.file(sha256)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (file, *file.parents[:4])]
    assert modes == [0o640, 0o750, 0o750, 0o750, 0o750]


def test_a_link_in_place_of_an_object_is_not_read_and_is_replaced(folder: LocalObjects, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"law")
    sha256 = folder.put(b"law")
    file = folder.file(sha256)
    file.unlink()
    file.symlink_to(outside)
    assert (folder.has(sha256), list(folder.listing())) == (False, [])
    with pytest.raises(CorruptBlock, match="missing"):
        folder.get(sha256)
    folder.put(b"law")
    assert not file.is_symlink()
    file.unlink()
    file.symlink_to(outside)
    folder.delete(sha256)
    assert (file.is_symlink(), outside.read_bytes()) == (False, b"law")


def test_what_stands_in_the_way_is_named(folder: LocalObjects) -> None:
    sha256 = folder.put(b"law")
    folder.file(sha256).unlink()
    folder.file(sha256).mkdir()
    assert "move away the folder" in refusal(lambda: folder.put(b"law"))
    shutil.rmtree(folder.path)
    folder.path.write_bytes(b"a file")
    asks = (
        lambda: folder.put(b"law"),
        lambda: folder.get(sha256),
        lambda: folder.has(sha256),
        lambda: list(folder.listing()),
    )
    for ask in asks:
        assert str(folder.path) in refusal(ask)


# --- remote places


def test_a_move_that_fails_shows_nothing_and_leaves_a_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = RemoteObjects(f"local://{tmp_path}/bank")

    def no_move(*_: object, **__: object) -> None:
        raise OSError("the line is cut")

    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "mv", no_move)
        assert "does not take 3 bytes (OSError: the line is cut)" in refusal(lambda: objects.put(b"law"))
    assert list(objects.listing()) == []
    (leftover,) = objects.leftovers()
    objects.clear_leftover(leftover.sha256)
    assert list(objects.leftovers()) == []
    assert objects.get(objects.put(b"law")) == b"law"


def test_a_bucket_that_is_not_there_is_named(bucket: str) -> None:
    objects = RemoteObjects("s3://nowhere/bank")
    assert "s3://nowhere/bank does not take 3 bytes" in refusal(lambda: objects.put(b"law"))
    assert "make the bucket" in refusal(lambda: objects.put(b"law"))
    assert list(objects.listing()) == []


@pytest.mark.slow
def test_a_large_object_goes_up_in_parts_and_comes_back(bucket: str) -> None:
    objects, data = RemoteObjects(f"{bucket}/large"), os.urandom(1 << 20) * 101
    assert objects.get(objects.put(data)) == data


def test_missing_credentials_and_a_dead_endpoint_are_refusals(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = RemoteObjects(f"{bucket}/bank")
    s3 = fsspec.get_filesystem_class("s3")
    with socket.socket() as taken, monkeypatch.context() as patch:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        s3.clear_instance_cache()
        said = refusal(lambda: objects.has("0" * 64))
        assert "EndpointConnectionError" in said
        assert "check the URL" in said
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        s3.clear_instance_cache()
        for ask in (lambda: objects.put(b"law"), lambda: list(objects.listing()), lambda: objects.delete("0" * 64)):
            assert "redentials" in refusal(ask)
    s3.clear_instance_cache()


def test_wrong_access_is_told_apart(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "pipe_file", forbidden)
    assert "not permitted: Forbidden); give credentials" in refusal(lambda: RemoteObjects("memory://x").put(b"law"))


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(_registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert f"run: {install('s3')}" in refusal(lambda: RemoteObjects("s3://banks/one").has("0" * 64))


def test_an_unknown_scheme_is_refused() -> None:
    assert "Protocol not known: nosuch" in refusal(lambda: RemoteObjects("nosuch://banks").has("0" * 64))


def test_a_password_is_not_shown() -> None:
    said = refusal(lambda: RemoteObjects("nosuch://user:geheim@host/bank").put(b"law"))
    assert said.startswith("nosuch://user:***@host/bank does not take 3 bytes")


# --- places


@pytest.mark.parametrize(
    ("place", "objects"),
    [
        ("bank", LocalObjects(Path("bank"))),
        ("/a b/bank", LocalObjects(Path("/a b/bank"))),
        (Path("/a/bank"), LocalObjects(Path("/a/bank"))),
        (r"C:\bank", LocalObjects(Path(r"C:\bank"))),
        ("C:/bank", LocalObjects(Path("C:/bank"))),
        ("file:///a%20b/c#d?e", LocalObjects(Path("/a b/c#d?e"))),
        ("FILE://localhost/a", LocalObjects(Path("/a"))),
        ("s3://banks/one", RemoteObjects("s3://banks/one")),
        ("S3://Banks/one", RemoteObjects("s3://Banks/one")),
        ("memory://x", RemoteObjects("memory://x")),
    ],
)
def test_a_place_is_a_path_or_a_url(place: str | Path, objects: Objects) -> None:
    assert open_objects(place) == objects


@pytest.mark.parametrize("place", ["", " ", "file://a/b", "file://", "simplecache::s3://banks", "://x", "c://bank"])
def test_what_is_neither_is_refused(place: str) -> None:
    with pytest.raises(ConfigError, match=r"give one of them|three slashes"):
        open_objects(place)


def test_a_local_place_waits_for_neither_fsspec_nor_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pmemx.store.places import open_objects\n"
        f"objects = open_objects({str(tmp_path / 'bank')!r}); objects.get(objects.put(b'law')); open_objects('s3://banks')\n"
        "assert not {'fsspec', 's3fs', 'torch', 'numpy'} & sys.modules.keys()"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
