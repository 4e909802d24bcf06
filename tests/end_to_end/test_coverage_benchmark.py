"""The benchmark of coverage on few samples, and whether its samples have the truth that it says they have."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks.coverage.__main__ import CASES, Tally, measure, table
from experiments.benchmarks.coverage.samples import STATISTICS, Case
from pmemx.core.statistics import estimate

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("case", "truth"),
    [
        (Case("rate", (0.9,), 400, 0.6), 0.9),
        (Case("difference", (0.7, 0.9), 400, 0.6, 0.9), -0.2),
        (Case("recovery", (0.72, 0.12, 0.92), 200, 0.2, 0.5, strata=2), 0.75),
    ],
)
def test_samples_of_a_case_have_its_truth(case: Case, truth: float):
    random = np.random.default_rng(0)
    found = [estimate(case.draw(random), STATISTICS[case.kind]) for _ in range(50)]
    assert case.truth == pytest.approx(truth)
    assert np.mean(found) == pytest.approx(truth, abs=4 * np.std(found) / np.sqrt(50))


def test_methods_that_share_everything_are_right_on_the_same_questions():
    sums = Case("difference", (0.8, 0.8), 50, 0.5, shared=1.0).draw(np.random.default_rng(0))[0].sums
    assert (sums[0] == sums[1]).all() and 0 < sums[0].sum() < sums[2].sum()


def test_the_more_alike_questions_of_a_cluster_are_the_more_a_rate_varies():
    random = np.random.default_rng(0)
    spread = [
        np.std([estimate(Case("rate", (0.5,), 50, correlation).draw(random)) for _ in range(100)])
        for correlation in (0.0, 0.9)
    ]
    assert spread[1] > 1.5 * spread[0]


def test_a_rate_of_one_is_always_covered_and_its_row_says_so():
    row = measure(Case("rate", (1.0,), 20, 0.6), trials=3)
    # Clusters of four to eight questions are some 19 trials of one size: wilson(19, 19) is 0.1682 long, of 20 it is 0.1611.
    assert row.interval == row.alone == Tally(1.0, 0.0, 0.0, 0.1695)
    assert table([row]).splitlines()[2] == "| rate | 1 | 1 × 20 | 0.6 |  | 1.000 | 1.000 | 0.1695 | 1.000 | 0.1695 |"


def test_every_case_is_recorded(tmp_path: Path):
    command = [sys.executable, "-m", "experiments.benchmarks.coverage", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    record = json.loads((tmp_path / "record.json").read_text())
    assert len(record["rows"]) == len(CASES) and record["trials"] == 5
    for row in record["rows"]:
        # The farther one of two intervals is never the shorter one.
        assert row["interval"]["mean_width"] >= row["alone"]["mean_width"]
        assert row["interval"]["coverage"] >= row["alone"]["coverage"]
    assert len((tmp_path / "table.md").read_text().splitlines()) == len(CASES) + 2
