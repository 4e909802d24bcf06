"""Stages and the workspace they share: a run folder, a seed, a progress reporter and a ledger."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from pmemx.core.metric import Figure


@runtime_checkable
class Advance(Protocol):
    """Moves a progress bar; note is a short text beside it ("loss 0.31")."""

    def __call__(self, steps: int = 1, note: str = "") -> None: ...


@runtime_checkable
class Progress(Protocol):
    """Opens a progress bar: `with progress("Distil law", total=120) as advance: advance(1)`."""

    def __call__(self, label: str, *, total: int | None = None) -> AbstractContextManager[Advance]:
        """total is the number of steps, None where it is not known beforehand."""
        ...


@contextmanager
def silent(label: str, *, total: int | None = None) -> Iterator[Advance]:
    """The progress reporter that reports nothing."""

    def advance(steps: int = 1, note: str = "") -> None: ...

    yield advance


@dataclass(frozen=True)
class MetricsLog:
    """A file of one JSON object a line: {"stage", "domain", "step", "name", "value"}."""

    path: Path

    def write(self, stage: str, values: Mapping[str, float], *, domain: str = "", step: int = 0) -> None:
        """Append one row a value. One write a call, so that parallel processes may share the file."""
        rows = (
            {"stage": stage, "domain": domain, "step": step, "name": name, "value": float(value)}
            for name, value in values.items()
        )
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def read(self) -> list[dict]:
        """All rows, oldest first; none when nothing was written."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]


@dataclass
class Ledger:
    """What the stages of one run say about it, for record.json.

    base: fingerprint of the base model's weights. blocks_in, blocks_out: digests by "name@number" of the versions that
    were read and made. figures: measured numbers with their intervals, by metric and name. notes: sentences for the
    reader. facts: anything else in JSON types, by a name that begins with the stage's.
    """

    base: str = ""
    blocks_in: dict[str, str] = field(default_factory=dict)
    blocks_out: dict[str, str] = field(default_factory=dict)
    figures: dict[str, dict[str, Figure]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Workspace:
    """Where one run works: its folder (which exists), its seed, and how it tells its reader what happens."""

    folder: Path
    seed: int = 0
    progress: Progress = silent
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def metrics(self) -> MetricsLog:
        """The run's metrics.jsonl; the object may be sent to another process."""
        return MetricsLog(self.folder / "metrics.jsonl")


class Stage(ABC):
    """One step of a plan. Stages meet only through the store and the run folder. A frozen dataclass of settings."""

    @abstractmethod
    def run(self, workspace: Workspace) -> dict[str, float]:
        """Do the work and return its headline numbers by name; a second call does not repeat what is done."""
