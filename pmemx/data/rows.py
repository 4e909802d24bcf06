"""Rows of files, dataset folders and Hub datasets, each with the place it came from."""

import csv
import io
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pmemx.core.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

TABLE_TYPES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""File types whose rows have columns."""
DOCUMENT_END = "<|endoftext|>"
"""What separates the documents of a .txt file, by the custom of language-model corpora."""


@dataclass(frozen=True)
class Row:
    """One row by column; place says where a person finds it ("law.jsonl:7"), number counts lines or rows from 1."""

    place: str
    number: int
    values: Mapping[str, object]


@dataclass(frozen=True)
class Table:
    """The rows of one file or of one split of a dataset, and the columns that any of them has.

    findings: what could not be read, one sentence with its place each; the rows are then incomplete.
    """

    name: str
    rows: tuple[Row, ...]
    findings: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column, in the order of first occurrence."""
        return tuple(dict.fromkeys(column for row in self.rows for column in row.values))


def read_table(path: Path) -> Table:
    """The rows of a .jsonl, .json, .csv, .tsv, .parquet or .txt file (which has a column `text`).

    A .json file holds a list of objects or one object a line. A .txt file is one row, or one
    for each document that `<|endoftext|>` ends.
    Raises DataError for a path that is no file, for another type, and for a file that is damaged as a whole.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file; correct the path (relative ones start at data.root)")
    match path.suffix.lower():
        case ".jsonl":
            return _json_lines(path)
        case ".json":
            return _json(path)
        case ".csv":
            return _separated(path, ",")
        case ".tsv":
            return _separated(path, "\t")
        case ".parquet":
            return _parquet(path)
        case ".txt":
            return _text(path)
        case kind:
            known = ", ".join(TABLE_TYPES)
            raise DataError(f"{path} has type {kind or 'none'!r}, which cannot be read; convert it to one of {known}")


def read_dataset(path: str, *, config: str | None, revision: str | None, cache: str | None) -> dict[str, Table]:
    """Every split of a folder that `save_to_disk` wrote, or of a dataset on the Hub; no code of it is ever run.

    cache: a folder that keeps downloads; None downloads to a temporary one.
    Raises DataError when `datasets` cannot find or read it.
    """
    from datasets import Dataset, load_dataset, load_from_disk
    from datasets.exceptions import DatasetsError

    with tempfile.TemporaryDirectory() as temporary:
        try:
            if is_saved_dataset(Path(path)):
                splits = load_from_disk(path)
            else:
                splits = load_dataset(path, config, revision=revision, cache_dir=cache or temporary)
            named = {"train": splits} if isinstance(splits, Dataset) else dict(splits)
            return {str(name): _of_dataset(f"{path}/{name}", split) for name, split in named.items()}
        except (DatasetsError, OSError, ValueError, RuntimeError) as error:
            raise DataError(
                f"datasets cannot read {path!r} ({error}); check its name, its `config` and the network"
            ) from error


def is_saved_dataset(path: Path) -> bool:
    """True for a folder that `datasets` wrote with `save_to_disk`."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _json_lines(path: Path) -> Table:
    rows, findings = [], []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if not text.strip():
                    continue
                value = json.loads(text)
            except UnicodeDecodeError as error:
                findings.append(f"{place} is not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8")
            except json.JSONDecodeError as error:
                findings.append(f"{place} is not JSON ({error.msg} at column {error.colno}); write one object a line")
            else:
                if isinstance(value, dict):
                    rows.append(Row(place, number, value))
                else:
                    findings.append(f"{place} is {_kind(value)}, not an object with columns")
    return Table(str(path), tuple(rows), tuple(findings))


def _json(path: Path) -> Table:
    try:
        items = json.loads(_decoded(path))
    except json.JSONDecodeError:
        return _json_lines(path)
    if not isinstance(items, list):
        return _json_lines(path)
    rows, findings = [], []
    for number, item in enumerate(items, start=1):
        place = f"{path} item {number}"
        if isinstance(item, dict):
            rows.append(Row(place, number, item))
        else:
            findings.append(f"{place} is {_kind(item)}, not an object with columns")
    return Table(str(path), tuple(rows), tuple(findings))


def _separated(path: Path, delimiter: str) -> Table:
    reader = csv.reader(io.StringIO(_decoded(path), newline=""), delimiter=delimiter, strict=True)
    rows, findings, line = [], [], 1
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise DataError(f"{path}:1 names a column twice ({', '.join(header)}); rename one")
        line = reader.line_num + 1
        for record in reader:
            # A quoted field may span lines: a record starts after the line on which the last one ended.
            place, number, line = f"{path}:{line}", line, reader.line_num + 1
            if len(record) == len(header):
                rows.append(Row(place, number, dict(zip(header, record, strict=True))))
            elif record:
                findings.append(
                    f"{place} has {len(record)} fields, the header {len(header)}; quote fields with {delimiter!r}"
                )
    except csv.Error as error:
        findings.append(f"{path}:{line} breaks the format ({error}); quote the field and double the quotes inside it")
    return Table(str(path), tuple(rows), tuple(findings))


def _parquet(path: Path) -> Table:
    from datasets import Dataset
    from datasets.exceptions import DatasetsError

    with tempfile.TemporaryDirectory() as cache:
        try:
            split = Dataset.from_parquet(str(path), cache_dir=cache)
        except (DatasetsError, OSError, ValueError) as error:
            raise DataError(f"{path} is not a readable Parquet file ({error}); write it again") from error
        assert isinstance(split, Dataset)
        return _of_dataset(str(path), split)


def _of_dataset(name: str, split: "Dataset") -> Table:
    rows = (Row(f"{name} row {number}", number, dict(values)) for number, values in enumerate(split, start=1))
    return Table(name, tuple(rows))


def _text(path: Path) -> Table:
    text = _decoded(path).replace("\r\n", "\n")
    rows = (
        Row(f"{path} part {number}", number, {"text": part.strip()})
        for number, part in enumerate(text.split(DOCUMENT_END), start=1)
        if part.strip()
    )
    return Table(str(path), tuple(rows))


def _decoded(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error


def _kind(value: object) -> str:
    return f"a JSON {'list' if isinstance(value, list) else 'value'} ({json.dumps(value)[:40]})"
