"""Count how often intervals cover the truth: python -m experiments.benchmarks.coverage [--quick] [--out FOLDER]."""

import argparse
import json
import math
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import numpy as np

from pmemx.core.statistics import Interval, interval

from .samples import STATISTICS, Case, bounds

CASES = (
    *(
        Case("rate", (rate,), clusters, correlation)
        for clusters in (8, 20, 50, 200)
        for correlation in (0.2, 0.6)
        for rate in (0.5, 0.9, 0.98, 0.995, 1.0)
    ),
    *(Case("rate", (rate,), 8, 0.6, strata=10) for rate in (0.9, 0.98)),
    *(
        Case("difference", (0.97, 0.98), clusters, correlation, shared)
        for clusters in (8, 20, 50, 200)
        for correlation, shared in ((0.2, 0.0), (0.6, 0.0), (0.6, 0.9))
    ),
    *(
        Case("recovery", (0.93, 0.02, 0.97), clusters, correlation, shared)
        for clusters in (8, 20, 50, 200)
        for correlation, shared in ((0.2, 0.5), (0.6, 0.5), (0.9, 0.9))
    ),
    Case("recovery", (0.93, 0.02, 0.97), 8, 0.6, 0.5, strata=10),
)


@dataclass(frozen=True)
class Tally:
    """coverage: share of samples whose interval holds the truth. too_high, too_low: those that lie above or below it."""

    coverage: float
    too_high: float
    too_low: float
    mean_width: float


@dataclass(frozen=True)
class Row:
    """A case with what was found. alone: percentiles alone, where clusters do not all agree."""

    case: Case
    truth: float
    interval: Tally
    alone: Tally


def measure(case: Case, trials: int) -> Row:
    """Samples of one case; every one gives both intervals."""
    random = np.random.default_rng(1)
    both: list[Interval] = []
    alone: list[Interval] = []
    for _ in range(trials):
        strata = case.draw(random)
        statistic = STATISTICS[case.kind]
        found = interval(strata, statistic, bounds=bounds(case.kind, strata))
        if found is None:
            raise ValueError(f"a sample of {case} has no interval; give its strata at least two clusters")
        both.append(found)
        alone.append(interval(strata, statistic, bounds=(-math.inf, math.inf)) or found)
    return Row(case, case.truth, _tally(both, case.truth), _tally(alone, case.truth))


def _tally(found: Sequence[Interval], truth: float) -> Tally:
    low, high = np.array(found).T
    above, below = low > truth + 1e-12, high < truth - 1e-12
    shares = (1 - np.mean(above | below), np.mean(above), np.mean(below))
    return Tally(*(round(float(share), 4) for share in shares), float(f"{np.mean(high - low):.4g}"))


def table(rows: Sequence[Row]) -> str:
    """One line a case, in Markdown."""
    heads = (
        "kind | rates | strata × clusters | correlation | shared | truth | coverage | width | percentiles alone | width"
    )
    lines = [f"| {heads} |", f"|{'---|' * (heads.count('|') + 1)}"]
    for row in rows:
        case = row.case
        cells = (
            case.kind,
            " ".join(f"{rate:g}" for rate in case.rates),
            f"{case.strata} × {case.clusters}",
            f"{case.correlation:g}",
            f"{case.shared:g}" if len(case.rates) > 1 else "",
            f"{row.truth:.3f}",
            f"{row.interval.coverage:.3f}",
            f"{row.interval.mean_width:.4f}",
            f"{row.alone.coverage:.3f}",
            f"{row.alone.mean_width:.4f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.coverage", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="5 samples a case: everything runs, no number means anything"
    )
    parser.add_argument("--trials", type=int, default=1000, help="samples a case")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    asked = parser.parse_args()
    trials = 5 if asked.quick else asked.trials
    begin = perf_counter()
    rows = [measure(case, trials) for case in CASES]
    described = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(described, cwd=Path(__file__).parent, capture_output=True, text=True)
    record = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "seconds": round(perf_counter() - begin),
        "versions": {package: version(package) for package in ("numpy", "scipy")},
        "trials": trials,
        "rows": [asdict(row) for row in rows],
    }
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "record.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (asked.out / "table.md").write_text(table(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
