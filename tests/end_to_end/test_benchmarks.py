"""The benchmarks at tiny shapes: engines agree before they are timed, and every row is recorded. No time is asserted."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = {
    "mixed forward",
    "mixed generate",
    "soft gate",
    "soft gate generate",
    "token top-2",
    "gate training",
    "gate training, live tensors",
    "gate training, resident",
    "sequence routing",
    "swap from disk",
    "swap from disk, growing",
    "swap from memory, growing",
    "open",
    "import",
    "memory per expert",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "experiments.benchmarks.engine", "--quick", "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


@pytest.fixture
def record(folder: Path) -> dict:
    return json.loads((folder / "record.json").read_text())


def test_every_operation_is_recorded(record):
    assert {row["operation"] for row in record["rows"]} == ROWS
    assert {row["experts"] for row in record["rows"] if row["operation"] == "mixed forward"} == {2, 4}
    assert record["machine"]["threads"] == 1 and record["versions"]["peft"] == version("peft")


def test_engines_agree_wherever_peft_has_the_operation(record):
    compared = {row["operation"] for row in record["rows"] if row["difference"] is not None}
    assert compared == {row["operation"] for row in record["rows"] if "peft" in row["amounts"]} - {
        "gate training, live tensors",
        "gate training, resident",
        "memory per expert",
    }
    assert all(row["difference"] <= 1e-5 for row in record["rows"] if row["difference"] is not None)


def test_a_bank_holds_nothing_but_its_factors(record):
    rows = [row for row in record["rows"] if row["operation"] == "memory per expert"]
    assert [row["ratios"]["pmemx / raw"]["median"] for row in rows] == [1.0, 1.0]


def test_the_table_and_the_figure_show_every_row(folder, record):
    lines = (folder / "table.md").read_text().splitlines()
    assert sum(line.startswith("| ") and "| experts |" not in line for line in lines) == (
        len(record["rows"]) + len(record["strategies"])
    )
    figure = (folder / "cost.svg").read_text()
    assert figure.startswith("<?xml") and "soft gate" in figure and "swap from disk" in figure
