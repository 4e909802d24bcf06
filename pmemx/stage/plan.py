"""Run the stages of a plan in order over one workspace."""

import csv
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pmemx.core.record import CurvePoint
from pmemx.core.stage import MetricsLog, Stage, Workspace


@dataclass(frozen=True)
class Outcome:
    """What one stage returned, and how long it took."""

    stage: str
    seconds: float
    values: Mapping[str, float]


def run_plan(
    stages: Mapping[str, Stage], workspace: Workspace, *, after: Callable[[tuple[Outcome, ...]], None]
) -> tuple[Outcome, ...]:
    """Run stages in the order of the mapping; `after` is called after each one with the outcomes so far.

    Headline numbers enter metrics.jsonl as rows of their stage without a domain.
    """
    outcomes: tuple[Outcome, ...] = ()
    for name, stage in stages.items():
        start = time.monotonic()
        values = stage.run(workspace)
        outcomes = (*outcomes, Outcome(name, time.monotonic() - start, values))
        workspace.metrics.write(name, values)
        after(outcomes)
    return outcomes


def write_csv(log: MetricsLog) -> Path:
    """The same points as comma-separated values, in metrics.csv."""
    path = log.folder / "metrics.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(CurvePoint)])
        writer.writeheader()
        writer.writerows(asdict(point) for point in log.read())
    return path
