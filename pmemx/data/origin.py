"""Where the rows of one domain are: a file, a folder of splits, a saved dataset, or the Hub."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import get_args

from pmemx.core.errors import DataError
from pmemx.data.columns import check_columns
from pmemx.data.rows import TABLE_TYPES, Table, is_saved_dataset, read_dataset, read_table
from pmemx.data.split import SPLITS, Split, check_fractions

_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
_NOT_DATA = ("", ".md", ".rst", ".txt")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a user says about one domain.

    path: a file or folder. hub: the name of a dataset on the Hub, with its config and revision. splits: our split to
    a file (of the folder `path`) or to the dataset's own split. columns, split_fractions: in place of the common ones.
    """

    path: str | None = None
    hub: str | None = None
    config: str | None = None
    revision: str | None = None
    splits: Mapping[str, str | None] = field(default_factory=dict)
    columns: Mapping[str, str | None] = field(default_factory=dict)
    split_fractions: Mapping[str, float] = field(default_factory=dict)
    instruction: str = ""

    @staticmethod
    def of(value: object, setting: str) -> "Origin":
        """From a path or a mapping of fields. Raises DataError for anything else, naming the setting."""
        if isinstance(value, str):
            return Origin(path=value)
        if not isinstance(value, Mapping):
            raise DataError(f"{setting} is {value!r}; give a path, or a mapping with `path`, `hub` or `splits`")
        known = {item.name: item.type for item in fields(Origin)}
        for key, entry in value.items():
            if key not in known:
                near = difflib.get_close_matches(str(key), known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}"
                raise DataError(f"{setting} takes no {key!r}; {hint}")
            is_mapping = key in ("splits", "columns", "split_fractions")
            if not (isinstance(entry, Mapping) if is_mapping else entry is None or isinstance(entry, str)):
                raise DataError(f"{setting}.{key} is {entry!r}; give {'a mapping' if is_mapping else 'text'}")
        origin = Origin(**{key: entry for key, entry in value.items() if entry is not None})
        origin._check(setting)
        return origin

    def _check(self, setting: str) -> None:
        if self.path is not None and self.hub is not None:
            raise DataError(f"{setting} has a path and a hub name; give one of the two")
        if self.path is None and self.hub is None and not self.splits:
            raise DataError(f"{setting} says not where its rows are; give `path`, `hub` or `splits`")
        if self.hub is None and (self.config or self.revision):
            raise DataError(
                f"{setting} has a config or revision, which only datasets on the Hub have; add hub or remove it"
            )
        if unknown := [split for split in self.splits if split not in get_args(Split)]:
            raise DataError(f"{setting}.splits has {', '.join(unknown)}; the splits are {', '.join(SPLITS)}")
        if self.splits and (absent := [split for split in ("train", "test") if split not in self._wanted()]):
            raise DataError(
                f"{setting}.splits gives no {absent[0]}; name it too, or leave `splits` out to split by hash"
            )
        check_columns(self.columns, f"{setting}.columns")
        if self.split_fractions:
            check_fractions(self.split_fractions, f"{setting}.split_fractions")

    def tables(self, root: Path, cache: str | None) -> dict[Split | None, list[Table]]:
        """The tables of every split; under None those whose rows are yet to be split.

        Raises DataError when a path is missing, a type cannot be read, or the splits are ambiguous.
        """
        if self.hub is not None:
            return self._choose(read_dataset(self.hub, config=self.config, revision=self.revision, cache=cache))
        place = root / (self.path or "")
        if not place.exists():
            raise DataError(f"{place} does not exist; correct the path (relative ones start at data.root)")
        if place.is_file():
            if self.splits:
                raise DataError(f"{place} is one file, but `splits` names others; give their folder as path, or none")
            return {None: [read_table(place)]}
        if is_saved_dataset(place):
            return self._choose(read_dataset(str(place), config=None, revision=None, cache=cache))
        if any(Path(name).suffix for name in self._wanted().values()):
            return {split: [read_table(place / name)] for split, name in self._wanted().items()}
        files = data_files(place)
        if self.splits or (not files and any(entry.is_dir() for entry in place.iterdir())):
            return self._choose(read_dataset(str(place), config=None, revision=None, cache=cache))
        if not files:
            raise DataError(f"{place} holds no data file; put one of {', '.join(TABLE_TYPES)} there")
        by_split: dict[Split | None, list[Table]] = {}
        for file in files:
            by_split.setdefault(split_name(file.stem), []).append(read_table(file))
        return _settle(by_split, str(place))

    def _choose(self, found: dict[str, Table]) -> dict[Split | None, list[Table]]:
        if not self.splits:
            if len(found) == 1:
                return {None: list(found.values())}
            named: dict[Split | None, list[Table]] = {
                split: [table] for name, table in found.items() if (split := split_name(name))
            }
            return _settle(named, f"{self.hub or self.path} with the splits {', '.join(found)}")
        wanted = self._wanted()
        if absent := [name for name in wanted.values() if name not in found]:
            raise DataError(
                f"there is no split {absent[0]!r}, but {', '.join(found)}; correct data.domains.<name>.splits"
            )
        return {split: [found[name]] for split, name in wanted.items()}

    def _wanted(self) -> dict[Split, str]:
        return {split: name for split in SPLITS if (name := self.splits.get(split)) is not None}


def split_name(name: str) -> Split | None:
    """The split that a file or split is named after ("train-00000-of-00002", "dev"), or None."""
    return _SPLIT_NAMES.get(re.split(r"[-_.]", name.lower())[0])


def data_files(folder: Path) -> list[Path]:
    """The data files of a folder, sorted; hidden files and files of prose are no data.

    Raises DataError for a file of another type: leaving it out in silence would lose rows.
    """
    files = [entry for entry in sorted(folder.iterdir()) if entry.is_file() and not entry.name.startswith((".", "_"))]
    if unreadable := [file for file in files if file.suffix.lower() not in (*TABLE_TYPES, *_NOT_DATA)]:
        raise DataError(
            f"{unreadable[0]} has type {unreadable[0].suffix!r}, which cannot be read; "
            f"convert it to one of {', '.join(TABLE_TYPES)} or move it away"
        )
    return [file for file in files if file.suffix.lower() in TABLE_TYPES]


def find_domains(domains: str | Sequence[str] | Mapping[str, object], root: Path) -> dict[str, Origin]:
    """Names and origins of the domains of a mapping, of a list of paths, or of a folder with one domain an entry.

    A folder that itself holds train and test files is one domain. Files are named by their stem, folders by their name.
    Raises DataError when two paths give one name or there is no domain.
    """
    if isinstance(domains, Mapping):
        origins = {name: Origin.of(value, f"data.domains.{name}") for name, value in domains.items()}
    else:
        paths = _entries(root / domains) if isinstance(domains, str) else [root / path for path in domains]
        origins = {}
        for path in paths:
            name = path.name if path.is_dir() else path.stem
            if name in origins:
                raise DataError(f"{origins[name].path} and {path} both give a domain {name!r}; rename one of them")
            origins[name] = Origin(path=str(path))
    if not origins:
        raise DataError(f"data.domains is {domains!r} and gives no domain; name at least one file or folder")
    if taken := [name for name in origins if name in ("general", "unknown")]:
        raise DataError(f"a domain cannot be named {taken[0]!r}, which is the text of no domain; rename it")
    return origins


def _entries(place: Path) -> list[Path]:
    if not place.exists():
        raise DataError(f"data.domains: {place} does not exist; correct the path (relative ones start at data.root)")
    if place.is_file() or is_saved_dataset(place):
        return [place]
    files = data_files(place)
    folders = [entry for entry in sorted(place.iterdir()) if entry.is_dir() and not entry.name.startswith((".", "_"))]
    if not folders and {"train", "test"} <= {split_name(file.stem) for file in files}:
        return [place]
    return [*folders, *files]


def _settle(tables: dict[Split | None, list[Table]], place: str) -> dict[Split | None, list[Table]]:
    splits = {split for split in tables if split is not None}
    if splits and None in tables:
        names = ", ".join(table.name for table in tables[None])
        raise DataError(f"{place} has files of splits and files of none ({names}); move those away or set `splits`")
    if len(splits) <= 1:
        return {None: [table for group in tables.values() for table in group]}
    if absent := [split for split in ("train", "test") if split not in splits]:
        have = ", ".join(split for split in SPLITS if split in splits)
        raise DataError(
            f"{place} has {have}, but no {absent[0]}; set `splits: {{train: ..., test: ...}}` to what is there"
        )
    return tables
