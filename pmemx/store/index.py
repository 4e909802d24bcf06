"""Names, versions and tags of a bank on disk; imports no torch, so that a listing is quick."""

import difflib
import json
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from filelock import FileLock

from pmemx.core.atomic import write_whole
from pmemx.core.canonical import digest
from pmemx.core.card import Version
from pmemx.core.errors import ConfigError, CorruptBlock, UnknownBlock
from pmemx.store.blobs import Blobs
from pmemx.store.manifest import FORMAT, Manifest

LATEST = "latest"
_BIDIRECTIONAL_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class Entry:
    """One version of a name: the digest of its manifest, and the version whose bytes it restores, if any."""

    digest: str
    restores: int | None = None


@dataclass(frozen=True)
class Record:
    """All versions of one name, oldest first, and its tags."""

    name: str
    versions: tuple[Entry, ...] = ()
    tags: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class FolderIndex:
    """The JSON records under refs/, one a name, and the manifests that they point at. Nothing is created by reading."""

    path: Path

    @property
    def blobs(self) -> Blobs:
        """The bytes beside the index."""
        return Blobs(self.path)

    def names(self) -> tuple[str, ...]:
        """Names with at least one version, sorted."""
        return tuple(sorted(record.name for record in self.records()))

    def records(self) -> Iterator[Record]:
        """Every name's record. Raises CorruptBlock at the first that cannot be read."""
        for file in self.files():
            yield self.read(file)

    def files(self) -> tuple[Path, ...]:
        """The record files."""
        return tuple(sorted((self.path / "refs").glob("*.json")))

    def file(self, name: str) -> Path:
        """The record file of a name: names are free text, so the file is called by their hash."""
        return self.path / "refs" / f"{sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}.json"

    def read(self, file: Path) -> Record:
        """The record in a file. Raises CorruptBlock when it was changed, or stands under another name's file."""
        record = _read(file)
        if self.file(record.name) != file:
            raise CorruptBlock(f"{file} holds the record of {record.name!r}; restore it from a copy of the store")
        return record

    def record(self, name: str) -> Record:
        """Raises UnknownBlock with the nearest names."""
        if self.file(name).is_file():
            return self.read(self.file(name))
        names = self.names()
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it holds {len(names)} blocks"
        raise UnknownBlock(f"no block {name!r} in {self.path}; {hint}")

    def history(self, name: str) -> tuple[Version, ...]:
        """Versions of a name, oldest first."""
        record = self.record(name)
        return tuple(self._version(record, number) for number in range(1, len(record.versions) + 1))

    def tags(self, name: str) -> dict[str, int]:
        """Tags of a name and the version numbers they point at."""
        return dict(self.record(name).tags)

    def find(self, reference: str) -> Version:
        """The version behind a name, "name@3", "name@tag", "name@latest", or a digest of at least 12 digits, tried in this order.

        Of versions with one digest the newest is meant.
        """
        if self.file(reference).is_file():
            record = self.record(reference)
            return self._version(record, len(record.versions))
        name, at, which = reference.rpartition("@")
        if at and self.file(name).is_file():
            return self._numbered(self.record(name), which)
        if re.fullmatch(r"[0-9a-f]{12,64}", reference):
            return self._by_digest(reference)
        return self._numbered(self.record(name if at else reference), LATEST)  # raises: no such name

    def manifest(self, sha256: str) -> Manifest:
        """The manifest of a version. Raises CorruptBlock when its bytes are not those that were written."""
        try:
            return Manifest.decode(self.blobs.get(sha256))
        except CorruptBlock as error:
            raise CorruptBlock(f"manifest {sha256[:12]}: {error}") from error

    def append(self, name: str, sha256: str, *, restores: int | None = None) -> Version:
        """Add a version, unless the latest has that digest already; safe among processes."""
        check_name(name)
        with self._updating(name) as record:
            if not record.versions or record.versions[-1].digest != sha256:
                record = replace(record, versions=(*record.versions, Entry(sha256, restores)))
                _write(self.file(name), record)
        return self._version(record, len(record.versions))

    def rollback(self, name: str, number: int) -> Version:
        """Add a latest version with the digest of an earlier one, unless the latest has it."""
        earlier = self._numbered(self.record(name), str(number))
        return self.append(name, earlier.digest, restores=number)

    def tag(self, reference: str, tag: str) -> Version:
        """Point a tag of the block's name at a version. Raises ConfigError for a tag that could be taken for a number."""
        if not tag.strip() or "@" in tag or tag.isdecimal() or tag == LATEST or not _printable(tag):
            raise ConfigError(f"a tag is a word other than {LATEST!r} without '@', got {tag!r}; choose another")
        version = self.find(reference)
        with self._updating(version.name) as record:
            _write(self.file(record.name), replace(record, tags=record.tags | {tag: version.number}))
        return version

    def _by_digest(self, prefix: str) -> Version:
        hits = [
            (record, number)
            for record in self.records()
            for number, entry in enumerate(record.versions, start=1)
            if entry.digest.startswith(prefix)
        ]
        digests = {record.versions[number - 1].digest for record, number in hits}
        if len(digests) != 1:
            found = f"{len(digests)} versions begin" if digests else "no version begins"
            raise UnknownBlock(f"{found} with digest {prefix} in {self.path}; give a name, or all 64 digits")
        return self._version(*hits[-1])

    def _numbered(self, record: Record, which: str) -> Version:
        count = len(record.versions)
        number = int(which) if which.isdecimal() else (record.tags | {LATEST: count}).get(which, 0)
        if not 1 <= number <= count:
            tags = f" and tags {', '.join(record.tags)}" if record.tags else ""
            raise UnknownBlock(f"{record.name!r} has versions 1 to {count}{tags}, but no {which!r}; name one of them")
        return self._version(record, number)

    def _version(self, record: Record, number: int) -> Version:
        entry = record.versions[number - 1]
        return Version(record.name, number, entry.digest, self.manifest(entry.digest).card, entry.restores)

    @contextmanager
    def _updating(self, name: str) -> Iterator[Record]:
        """The record as it stands, while no other process changes one."""
        (self.path / "refs").mkdir(parents=True, exist_ok=True)
        with FileLock(self.path / "lock"):
            yield self.read(self.file(name)) if self.file(name).is_file() else Record(name)


def check_name(name: str) -> None:
    """Raises ConfigError for a name that cannot be shown: empty, or with control characters."""
    if not name.strip() or not _printable(name):
        raise ConfigError(f"the name of a block must be visible text on one line, got {name!r}; rename it")


def _printable(text: str) -> bool:
    # Not str.isprintable, which refuses the joiners inside emoji.
    hidden = ("Cc", "Cs", "Zl", "Zp")
    return not any(unicodedata.category(c) in hidden or c in _BIDIRECTIONAL_CONTROLS for c in text)


def _read(file: Path) -> Record:
    try:
        value = json.loads(file.read_bytes())
        content = value["record"]
        if value["sha256"] != digest(content):
            raise CorruptBlock(f"{file} was changed from outside; restore it from a copy of the store")
        if content["format"] != FORMAT:
            raise CorruptBlock(f"{file} is of format {content['format']!r}, this pmemx reads {FORMAT}; upgrade pmemx")
        versions = tuple(Entry(**entry) for entry in content["versions"])
        return Record(content["name"], versions, dict(content["tags"]))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptBlock(
            f"{file} is no record of versions ({error!r}); restore it from a copy of the store"
        ) from error


def _write(file: Path, record: Record) -> None:
    content = {"format": FORMAT} | asdict(record)
    text = json.dumps({"record": content, "sha256": digest(content)}, indent=1, ensure_ascii=False)
    write_whole(file, text.encode())
