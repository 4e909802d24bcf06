"""What a run folder says about itself: record.json (what was done, with what, and the figures) and metrics.jsonl (curves)."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pmemx.core.errors import DataError
from pmemx.core.metric import Figure

RECORD_FILE = "record.json"
CURVES_FILE = "metrics.jsonl"
EVIDENCE_FILE = "evidence.jsonl"


@dataclass(frozen=True)
class BlockEntry:
    """One block of the run's bank, by the digest of its bytes; version counts 1, 2, ... under the name."""

    name: str
    version: int
    digest: str
    domain: str


@dataclass(frozen=True)
class BaseEntry:
    """The base model: a readable name and the fingerprint of its weights."""

    name: str
    fingerprint: str


@dataclass(frozen=True)
class RunRecord:
    """What a run did. created: ISO 8601 in UTC. plan: stages in order. seconds: wall time per stage.

    config_digest: of all settings. experiment_digest: of what the answers come from but for seeds, so that runs of one study
    share it; empty in records of versions that did not note it. notice: what a reader must know before any number; empty for nothing.

    Anything that a run has not reached yet is empty, so that a record can be written after every stage.
    """

    experiment: str
    created: str = ""
    plan: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    commit: str = ""
    config_digest: str = ""
    seeds: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    base: BaseEntry | None = None
    blocks: tuple[BlockEntry, ...] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    experiment_digest: str = ""
    notice: str = ""

    def write(self, run_folder: Path) -> Path:
        """Write record.json whole or not at all."""
        path = run_folder / RECORD_FILE
        partial = path.with_suffix(".partial")
        partial.write_text(
            json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )
        os.replace(partial, path)
        return path

    @staticmethod
    def read(run_folder: Path) -> "RunRecord":
        """The record that `write` wrote.

        Raises DataError when the folder holds none, or one with fields that are unknown here or missing.
        """
        path = run_folder / RECORD_FILE
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{run_folder} has no {RECORD_FILE}; give the folder of a run") from None
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path} is not JSON (line {error.lineno}: {error.msg}); run the experiment again"
            ) from None
        try:
            base = row.get("base")
            return RunRecord(
                **row
                | {
                    "plan": tuple(row.get("plan", ())),
                    "seconds": {stage: float(value) for stage, value in row.get("seconds", {}).items()},
                    "base": BaseEntry(**base) if base else None,
                    "blocks": tuple(BlockEntry(**block) for block in row.get("blocks", ())),
                    "figures": {name: Figure(**figure) for name, figure in row.get("figures", {}).items()},
                    "notes": tuple(row.get("notes", ())),
                }
            )
        except (TypeError, AttributeError) as error:
            raise DataError(f"{path} does not fit this version of pmemx ({error}); run the experiment again") from None


@dataclass(frozen=True)
class CurvePoint:
    """One value of a training curve. domain: whose expert is trained; None for a stage that serves all domains."""

    stage: str
    domain: str | None
    step: int
    name: str
    value: float


def append_curve(run_folder: Path, points: Iterable[CurvePoint]) -> None:
    """Add points to metrics.jsonl, one JSON object a line."""
    with (run_folder / CURVES_FILE).open("a", encoding="utf-8") as file:
        for point in points:
            file.write(json.dumps(asdict(point), ensure_ascii=False) + "\n")


def read_curves(run_folder: Path) -> tuple[CurvePoint, ...]:
    """The points of metrics.jsonl in order; none where the file is absent.

    A last line without its newline is what a killed run leaves, and is dropped.
    """
    path = run_folder / CURVES_FILE
    if not path.exists():
        return ()
    whole = path.read_text(encoding="utf-8").split("\n")[:-1]
    rows = [json.loads(line) for line in whole if line]
    return tuple(CurvePoint(**row | {"value": float(row["value"])}) for row in rows)
