"""Stages and the workspace they share: a run folder, a seed, a progress reporter and a ledger."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from pmemx.core.card import Version
from pmemx.core.metric import Figure
from pmemx.core.record import BaseEntry, BlockEntry, CurvePoint, append_curve, read_curves


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
    """The metrics.jsonl of a run folder; may be sent to another process."""

    folder: Path

    def write(self, stage: str, values: Mapping[str, float], *, domain: str | None = None, step: int = 0) -> None:
        """Append one point a value. domain: whose expert is trained, None where a stage serves all of them."""
        append_curve(self.folder, [CurvePoint(stage, domain, step, name, float(v)) for name, v in values.items()])

    def read(self) -> tuple[CurvePoint, ...]:
        """All points, oldest first."""
        return read_curves(self.folder)


@dataclass
class Ledger:
    """What the stages of one run say about it, for record.json.

    figures: measured numbers with their intervals, by the full name that its metric gave. notes: sentences for the reader.
    """

    base: BaseEntry | None = None
    blocks: dict[str, BlockEntry] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, version: Version) -> None:
        """Note a block that this run made or used."""
        entry = BlockEntry(version.name, version.number, version.digest, version.card.domain)
        self.blocks[f"{version.name}@{version.number}"] = entry


@dataclass(frozen=True)
class Workspace:
    """Where one run works: its folder (which exists), its seed, and how it tells its reader what happens."""

    folder: Path
    seed: int = 0
    progress: Progress = silent
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def metrics(self) -> MetricsLog:
        """Where curves and headline numbers go."""
        return MetricsLog(self.folder)


class Stage(ABC):
    """One step of a plan. Stages meet only through the store and the run folder. A frozen dataclass of settings.

    puts_blocks: whether it puts blocks into its store, so that a run can ask beforehand whether it may.
    """

    puts_blocks: ClassVar[bool] = False

    @abstractmethod
    def run(self, workspace: Workspace) -> dict[str, float]:
        """Do the work and return its headline numbers by name; a second call does not repeat what is done."""
