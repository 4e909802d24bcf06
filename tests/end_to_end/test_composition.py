"""The composition study at scale=smoke: every published way is trained, asked and put into the table, and nothing is done twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pmemx.core.evidence import Evidence

ROOT = Path(__file__).parents[2]
COMMAND = ("run", "experiments=composition/bundled", "scale=smoke", "hydra.sweeper.params.seed='0'")


def pmemx(folder: Path, *arguments: str, fails: bool = False) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pmemx.cli", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert (done.returncode != 0) == fails, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr if fails else done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("composition")
    pmemx(folder, *COMMAND)
    return folder


def names(axis: str) -> set[str]:
    return {path.stem for path in (ROOT / "conf" / axis).glob("*.yaml")}


def test_every_way_of_composing_is_asked(folder):
    methods = set(Evidence.read(folder / "outputs/composition/bundled/seed0/evidence.jsonl").methods)
    # `linear` is token_linear at another granularity, and `router` router_loss_free without its bias.
    assert names("composition") - {"linear", "router"} <= methods
    assert {f"together/{name}" for name in names("together")} <= methods
    assert {f"merge/{name}" for name in names("merge")} - methods <= {"merge/cat", "merge/linear", "merge/ties_factors"}
    assert {"base", "teacher", "oracle", "joint", "average", "sum"} <= methods


def test_what_every_way_costs_is_counted(folder):
    figures = json.loads((folder / "outputs/composition/bundled/seed0/record.json").read_text())["figures"]
    cost = {name.rpartition("/")[2]: figure["value"] for name, figure in figures.items() if "multiply_adds" in name}
    # Gates that hardly learnt send elsewhere what the oracle sends to the base, which costs nothing more.
    assert 1 <= cost["oracle"] <= cost["tracking"] < 1.2 < 2 < cost["xlora"]
    assert figures["cost/parameters/lora_hub"]["value"] == 5
    assert figures["cost/parameters/soups"]["value"] > 5


def test_the_study_has_a_table_and_a_page(folder):
    study = folder / "outputs/composition/bundled"
    table = (study / "table.md").read_text()
    assert "tracking" in table and "merge/regmean" in table and "together/mixlora" in table
    # Nothing can be recovered where no expert learnt: so there are tables, and no picture.
    assert "<table" in (study / "index.html").read_text()


def test_a_second_run_repeats_no_cell_and_no_training(folder):
    made = [*(folder / "outputs/cells").iterdir(), *(folder / "outputs/composition/bundled/seed0/gates").rglob("*.*")]
    before = {path: path.stat().st_mtime_ns for path in made}
    evidence = (folder / "outputs/composition/bundled/seed0/evidence.jsonl").read_bytes()
    out = pmemx(folder, *COMMAND, "plan=[distill,train_gate,evaluate]", "stage.evaluate.costs=false")
    assert "Train gate" not in out and "Show gate" not in out
    assert {path: path.stat().st_mtime_ns for path in made} == before
    assert (folder / "outputs/composition/bundled/seed0/evidence.jsonl").read_bytes() == evidence


def test_a_gate_that_was_learnt_over_other_experts_is_refused(folder):
    path = folder / "outputs/composition/bundled/seed0/gates/sequence.json"
    before = path.read_text()
    card = json.loads(before)
    assert len(card["learnt"]["experts"]) == 5
    card["learnt"] |= {"work": "another", "experts": [*card["learnt"]["experts"][1:], "0" * 64]}
    path.write_text(json.dumps(card))
    said = pmemx(folder, *COMMAND, "plan=[evaluate]", "stage.evaluate.costs=false", fails=True)
    path.write_text(before)
    assert "gate 'sequence' was trained over other versions" in said and "put train_gate before evaluate" in said
