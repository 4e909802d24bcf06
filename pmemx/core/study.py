"""What a study says: several runs of one experiment as one set of figures, with the method as its unit."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pmemx.core.atomic import write_whole
from pmemx.core.errors import DataError
from pmemx.core.metric import Figure
from pmemx.core.record import BaseEntry, RunRecord
from pmemx.core.verdict import Verdict

STUDY_FILE = "study.json"


@dataclass(frozen=True)
class Spread:
    """A number that every seed has: its mean, its least and its greatest value."""

    mean: float
    least: float
    most: float

    @staticmethod
    def of(values: Sequence[float]) -> "Spread | None":
        """None for no values."""
        return Spread(sum(values) / len(values), min(values), max(values)) if values else None


@dataclass(frozen=True)
class StudiedMethod:
    """One method over all seeds; None is what was not measured.

    recovery, score: over the domains with an expert. routing: share of prompts sent to their expert. unknown: share of
    unanswerable prompts sent to no expert, left_out: of a domain's prompts while its expert is barred. general: nats per token lost on general text. multiply_adds: per token, the
    base's being 1. parameters: how many were trained. seconds: to train. by_seed: recovery of each seed alone.
    """

    name: str
    group: str
    source: str = ""
    recovery: Figure | None = None
    score: Figure | None = None
    routing: Figure | None = None
    unknown: Figure | None = None
    left_out: Figure | None = None
    general: Figure | None = None
    multiply_adds: Spread | None = None
    parameters: Spread | None = None
    seconds: Spread | None = None
    by_seed: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StudiedSeed:
    """One run of the study. folder: its name. digest: of its settings."""

    name: str
    folder: str
    created: str = ""
    commit: str = ""
    digest: str = ""


@dataclass(frozen=True)
class Study:
    """score: "exact" or "loss". questions: on domains with an expert, over all seeds; clusters: documents among them.

    dropped: methods that not every seed has. limits: sentences that a reader must know beside the figures. notice: what a
    reader must know before any figure; empty for nothing.
    """

    title: str
    score: str
    seeds: tuple[StudiedSeed, ...]
    base: BaseEntry | None
    experts: tuple[str, ...]
    other_domains: tuple[str, ...]
    questions: int
    clusters: int
    methods: tuple[StudiedMethod, ...]
    verdicts: tuple[Verdict, ...] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    passage_lengths: tuple[int, ...] = ()
    notice: str = ""

    def write(self, folder: Path) -> Path:
        """Write study.json whole or not at all."""
        path = folder / STUDY_FILE
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False)
        write_whole(path, f"{text}\n".encode())
        return path


@dataclass(frozen=True)
class GrowthPoint:
    """What one size of a bank gave: its figures by name, under the names that the metrics gave them, and its notice."""

    experts: int
    source: str
    figures: Mapping[str, Figure]
    notice: str = ""

    @staticmethod
    def read(folder: Path, experts: int) -> "GrowthPoint":
        """Of a study over seeds where the folder holds one, else of a run. Raises DataError where it holds neither."""
        path = folder / STUDY_FILE
        if not path.exists():
            record = RunRecord.read(folder)
            return GrowthPoint(experts, folder.name, record.figures, record.notice)
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            figures = {name: Figure(**f) for name, f in row["figures"].items()}
            return GrowthPoint(experts, folder.name, figures, row.get("notice", ""))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f"{path} does not fit this version of pmemx ({error}); make the study again") from None


@dataclass(frozen=True)
class Growth:
    """The same methods over banks of several sizes. groups: group by method, in the order of the page."""

    title: str
    score: str
    points: tuple[GrowthPoint, ...]
    groups: Mapping[str, str]
