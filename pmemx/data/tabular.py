"""The user's own rows as domains: JSONL, JSON, CSV, TSV, Parquet, saved datasets and the Hub."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pmemx.core.domain import Corpus, Domain, DomainSource, Example
from pmemx.core.errors import DataError
from pmemx.data.assemble import BySplit, refuse_repeated_ids, to_domain, without_overlap
from pmemx.data.columns import Placed, check_columns, examples, has_text
from pmemx.data.origin import Origin, find_domains
from pmemx.data.passages import passages
from pmemx.data.rows import Table
from pmemx.data.split import SPLITS, Split, check_fractions, sample, split_groups

log = logging.getLogger(__name__)

Where = str | Mapping[str, Any] | Sequence[str]
_TEXTS = ("general", "negatives")
"""Bodies that may be plain text."""
_UNANSWERED = ("unknown", "negatives")
"""Bodies whose rows need no response."""


@dataclass(frozen=True, kw_only=True)
class Tabular(DomainSource):
    """Domains from tables with the columns prompt and response, and optionally document, group, id and form.

    domains: a folder with one domain a file or subfolder, a list of paths, or a mapping of names to paths or to the
    fields of Origin. Files or dataset splits named train, validation and test are used as they are; else every group
    goes to one split by a seeded hash of its name, and no split stays empty.
    split_by: what the test measures. "group": documents that no training saw, so a skill. "prompt": new questions, also
    about documents that were read in training, so knowledge of these.
    general: the base model's own text, on which forgetting is measured: rows with the column text, rows of prompt
    and response, or .txt files. unknown: prompts that no expert can answer; their responses may be absent. negatives: text of
    many kinds that no expert covers, or prompts of such; gates learn from it what "no expert" means besides general text.
    root: where relative paths start. columns: role to column name, null for none. max_rows: per split of each domain,
    drawn by hash. max_characters: longer rows, document included, are left out before that.
    document_in_prompt: domains whose rows make no sense without their document, which becomes part of the prompt.
    general_characters: the longest passage of plain text. general_prompt_words: the fewest words of its prompt; see passages.
    on_overlap: a prompt that is in two splits is an error, or it is dropped from train, then validation.
    cache: a folder for downloads; null keeps none.
    """

    domains: Where
    general: Where | None
    unknown: Where | None = None
    negatives: Where | None = None
    root: str = "."
    columns: Mapping[str, str | None] = field(default_factory=dict)
    split_fractions: Mapping[str, float] = field(default_factory=lambda: {"train": 0.8, "validation": 0.1, "test": 0.1})
    split_by: Literal["group", "prompt"] = "group"
    seed: int = 0
    max_rows: Mapping[str, int | None] = field(default_factory=dict)
    max_characters: int | None = None
    document_in_prompt: Sequence[str] = ()
    general_characters: int = 2000
    general_prompt_words: int = 16
    on_overlap: Literal["error", "drop"] = "error"
    cache: str | None = None

    def __post_init__(self) -> None:
        if not self.general:
            raise DataError(
                "data.general is null, but forgetting is measured on general text, and a gate learns from it to "
                "abstain; set data.general to text of the kind the base model was trained on (a .txt or .jsonl file)"
            )
        check_columns(self.columns, "data.columns")
        check_fractions(self.split_fractions, "data.split_fractions")
        for split, number in self.max_rows.items():
            if split not in SPLITS or (number is not None and number < 1):
                raise DataError(f"data.max_rows.{split} is {number}; give a number above 0 for {', '.join(SPLITS)}")
        for name in ("general_characters", "general_prompt_words", "max_characters"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise DataError(f"data.{name} is {value}, but must be above 0; raise it")

    def load(self) -> Corpus:
        """Read, check, split and sample. Raises one DataError with all findings, by domain, file and line."""
        origins = find_domains(self.domains, Path(self.root))
        findings = [
            f"data.document_in_prompt names {name!r}, but the domains are {', '.join(origins)}; correct the name"
            for name in self.document_in_prompt
            if name not in origins
        ]
        seen: set[str] = set()
        bodies: dict[str, Domain] = {}
        wanted = {name: [origin] for name, origin in origins.items()}
        wanted |= {name: _origins(where, f"data.{name}") for name, where in self._others().items()}
        for name, places in wanted.items():
            try:
                bodies[name] = self._body(name, places, seen)
            except DataError as error:
                findings.append(f"{name}: {error}")
        if self.columns and not findings:
            findings += [
                f"data.columns.{role}={column} is a column of no file; correct the name or remove the setting"
                for role, column in self.columns.items()
                if column not in (None, role) and column not in seen
            ]
        if findings:
            raise DataError("the data cannot be used:\n- " + "\n- ".join(findings))
        return Corpus(
            tuple(bodies[name] for name in origins), bodies["general"], bodies.get("unknown"), bodies.get("negatives")
        )

    def _others(self) -> dict[str, Where]:
        others = {"general": self.general, "unknown": self.unknown, "negatives": self.negatives}
        return {name: where for name, where in others.items() if where}

    def _body(self, name: str, origins: Sequence[Origin], seen: set[str]) -> Domain:
        splits: BySplit = {split: [] for split in SPLITS}
        unsplit: list[tuple[Placed, Mapping[str, float]]] = []
        for origin in origins:
            for split, rows in self._rows(name, origin, seen).items():
                if split is None:
                    unsplit += [(row, origin.split_fractions or self.split_fractions) for row in rows]
                else:
                    splits[split] += rows
        if not any(splits.values()) and not unsplit:
            raise DataError("there are no rows; add some, raise data.max_characters, or leave it out")
        fractions_of = {self._key(name, row.example): fractions for row, fractions in reversed(unsplit)}
        chosen = split_groups(fractions_of, self.seed, filled=[split for split in SPLITS if splits[split]])
        for row, _ in unsplit:
            splits[chosen[self._key(name, row.example)]].append(row)
        refuse_repeated_ids(splits)
        splits = without_overlap(splits, drop=self.on_overlap == "drop", whole_text=name in _TEXTS)
        if absent := [split for split in ("train", "test") if not splits[split]]:
            raise DataError(
                f"no row is left for {absent[0]}, without those that are longer than data.max_characters and those that "
                f"another split asks too; raise data.max_characters, or remove the repeated prompts"
            )
        kept: dict[Split, tuple[Example, ...]] = {split: self._drawn(split, rows) for split, rows in splits.items()}
        return to_domain(name, kept, instruction=" ".join(origin.instruction for origin in origins).strip())

    def _rows(self, name: str, origin: Origin, seen: set[str]) -> dict[Split | None, list[Placed]]:
        """The rows of one origin by split, None where they are yet to be split, without those that are too long."""
        columns = dict(self.columns) | dict(origin.columns)
        tables = origin.tables(Path(self.root), self.cache)
        found = {column for group in tables.values() for table in group for column in table.columns}
        seen |= found
        if absent := [column for column in origin.columns.values() if column is not None and column not in found]:
            raise DataError(
                f"`columns` names {absent[0]!r}, but the columns are {', '.join(sorted(found))}; correct it"
            )
        return {split: self._fitting(name, self._read(name, group, columns)) for split, group in tables.items()}

    def _read(self, name: str, tables: Sequence[Table], columns: Mapping[str, str | None]) -> list[Placed]:
        placed, findings = [], []
        for table in tables:
            try:
                if name in _TEXTS and has_text(table, columns):
                    size, words = self.general_characters, self.general_prompt_words
                    placed += passages(table, columns, characters=size, prompt_words=words)
                else:
                    within = name in self.document_in_prompt
                    placed += examples(
                        table, columns, response_needed=name not in _UNANSWERED, document_in_prompt=within
                    )
            except DataError as error:
                findings.append(str(error))
        if findings:
            raise DataError("\n  ".join(findings))
        return placed

    def _key(self, name: str, example: Example) -> str:
        # Plain texts may share their first words, which are the prompt; their group tells them apart.
        by_group = self.split_by == "group" or name in _TEXTS
        return example.group if by_group else f"{example.document}\0{example.prompt}"

    def _fitting(self, name: str, rows: list[Placed]) -> list[Placed]:
        fitting = [row for row in rows if name in _TEXTS or self._fits(row.example)]
        if len(fitting) < len(rows):
            told = "%s: %d of %d rows have at most %s characters and are kept"
            log.info(told, name, len(fitting), len(rows), self.max_characters)
        return fitting

    def _drawn(self, split: Split, rows: Sequence[Placed]) -> tuple[Example, ...]:
        examples = [row.example for row in rows]
        return sample(
            examples, self.max_rows.get(split), self.seed, lambda e: f"{e.document}\0{e.prompt}\0{e.response}"
        )

    def _fits(self, example: Example) -> bool:
        size = len(example.document) + len(example.prompt) + len(example.response)
        return self.max_characters is None or size <= self.max_characters


def _origins(where: Where, setting: str) -> list[Origin]:
    if isinstance(where, str | Mapping):
        return [Origin.of(where, setting)]
    return [Origin.of(path, setting) for path in where]
