"""Experts merged into one block at scale=smoke: every part works together, and no number means anything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pmemx.core.evidence import Evidence
from pmemx.store.governed import GovernedStore

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("merges")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pmemx.cli", "run", "experiments=merges", "scale=smoke", "hydra.run.dir=run"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "energy lost" in done.stdout and "merge/knots_ties" in done.stdout
    return folder


def test_the_record_tells_what_every_merge_lost_and_how_it_answers(folder):
    figures = json.loads((folder / "run" / "record.json").read_text())["figures"]
    merges = json.loads((folder / "run" / "blocks.json").read_text())["merge"]
    assert len(merges) == 12
    for name in merges:
        assert 0 <= figures[f"lost_energy/merge/{name}"]["value"] < 1
        assert figures[f"exact_match/merge/{name}/all_domains/test"]["n"] == 24
        assert f"forgetting_general/loss/merge/{name}" in figures
    assert "merge/ties" in (folder / "run" / "report.html").read_text()


def test_a_merged_average_answers_as_the_bank_that_mixes_all_experts_evenly(folder):
    evidence = Evidence.read(folder / "run" / "evidence.jsonl")
    for domain in ("law", "finance", "medicine", "general"):
        merged, mixed = evidence.rows("merge/average", domain), evidence.rows("average", domain)
        assert merged and [row.hits for row in merged] == [row.hits for row in mixed]
        assert all(abs(one.nats - other.nats) < 1e-3 for one, other in zip(merged, mixed, strict=True))


def test_merged_blocks_stand_in_the_bank_with_their_parents(folder):
    store = GovernedStore(str(folder / "outputs" / "smoke" / "bank_seed0"))
    experts = json.loads((folder / "run" / "blocks.json").read_text())["experts"]
    card = store.find("merge/ties_paper").card
    assert set(card.parents) == {digest for (digest,) in experts.values()}
    assert card.recipe["merge"]["prune"] == {"type": "pmemx.merge.threshold.Threshold", "density": 0.2}
    assert store.verify() == ()
