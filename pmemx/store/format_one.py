"""The names of a bank of format 1: one JSON record a name under refs/, in the place of a ledger."""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from pmemx.core.canonical import digest
from pmemx.core.errors import CorruptBlock, StorageError
from pmemx.store.local_objects import LocalObjects
from pmemx.store.places import open_objects

_KEYS = {"format", "name", "versions", "tags"}


@dataclass(frozen=True)
class Record:
    """All versions of one name, oldest first, each a digest and the number that it restores; and its tags."""

    file: Path
    name: str
    versions: tuple[tuple[str, int | None], ...]
    tags: dict[str, int]


def records_folder(place: str | Path) -> Path | None:
    """Where the records of a bank of format 1 are, None for any other bank. Raises StorageError."""
    objects = open_objects(place)
    if not isinstance(objects, LocalObjects):
        return None
    folder = objects.path / "refs"
    try:
        return folder if any(folder.glob("*.json")) else None
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be reached ({error.strerror}); change the permissions of its folder"
        ) from error


def refuse_format_one(place: str | Path) -> None:
    """Raises StorageError for a bank of format 1."""
    if records_folder(place):
        raise StorageError(
            f"{place} is a bank of format 1, which keeps its names under refs/; "
            f"run `pmemx bank migrate` on it: versions, tags and digests stay as they are"
        )


def read_records(folder: Path) -> tuple[Record, ...]:
    """Every record, by name. Raises CorruptBlock at the first that was changed, or stands under another name's file."""
    return tuple(sorted((_read(file) for file in folder.glob("*.json")), key=lambda record: record.name))


def _read(file: Path) -> Record:
    try:
        value = json.loads(file.read_bytes())
        content = value["record"]
        if value["sha256"] != digest(content) or content["format"] != 1 or content.keys() != _KEYS:
            raise ValueError("it was changed from outside")
        name = content["name"]
        if file.stem != sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]:
            raise ValueError(f"it is the record of {name!r}")
        versions = tuple((entry["digest"], entry["restores"]) for entry in content["versions"])
        count = len(versions)
        numbers = [*content["tags"].values(), *(restored for _, restored in versions if restored is not None)]
        if not count or not all(1 <= number <= count for number in numbers):
            raise ValueError("a number in it is of no version")
        return Record(file, name, versions, dict(content["tags"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptBlock(
            f"{file} is no record of versions ({error}); restore it from a copy of the bank, "
            "or move it away to leave its block behind"
        ) from error
