"""A sweep over seeds and over a group at scale=smoke: every job has its folder, its record, its report and its bank."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SWEEP = ("run", "-m", "scale=smoke", "smoke_domains=1", "plan=[distill]", "gate=linear,tracking", "seed=0,1")
JOBS = [("linear", 0), ("linear", 1), ("tracking", 0), ("tracking", 1)]


def pmemx(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "pmemx.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the sweep, and what it printed."""
    folder = tmp_path_factory.mktemp("sweep")
    done = pmemx(folder, *SWEEP)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (made,) = (folder / "outputs" / "default").iterdir()
    return made, done.stdout


def test_every_job_has_its_own_folder_record_and_report(swept: tuple[Path, str]):
    folder, _ = swept
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["0", "1", "2", "3"]
    for number, (gate, seed) in enumerate(JOBS):
        job = folder / str(number)
        record = json.loads((job / "record.json").read_text())
        config = yaml.safe_load((job / ".hydra" / "config.yaml").read_text())
        assert (record["experiment"], record["seeds"]["seed"], config["seed"]) == ("default", seed, seed)
        assert config["gate"]["_target_"].startswith(f"pmemx.gate.{gate}.")
        assert (job / "report.html").is_file()


def test_seeds_have_a_bank_each_and_jobs_of_one_seed_share_what_is_distilled(swept: tuple[Path, str]):
    folder, output = swept
    banks = [
        yaml.safe_load((folder / str(job) / ".hydra" / "config.yaml").read_text())["bank_folder"] for job in range(4)
    ]
    assert banks == ["outputs/smoke/bank_seed${seed}"] * 4
    assert sorted(path.name for path in (folder.parents[1] / "smoke").iterdir()) == ["bank_seed0", "bank_seed1"]
    blocks = [json.loads((folder / str(job) / "record.json").read_text())["blocks"] for job in range(4)]
    assert blocks[0] == blocks[2] != blocks[1] == blocks[3]
    assert [block["version"] for job in blocks for block in job] == [1, 1, 1, 1]
    assert output.count("already distilled") == 2


def test_what_is_printed_says_which_job_works_where(swept: tuple[Path, str]):
    folder, output = swept
    place = folder.relative_to(folder.parents[2])
    lines = [f"job {number} (gate={gate}, seed={seed}): {place}/{number}" for number, (gate, seed) in enumerate(JOBS)]
    printed = output.splitlines()
    assert [line for line in printed if line.startswith("job ")] == [*lines, *lines]
    assert printed[-5:] == ["4 jobs are done:", *lines]
    assert "HYDRA" not in output


def test_a_recipe_that_changes_says_whose_latest_version_it_made(swept: tuple[Path, str]):
    folder, _ = swept
    words = ("scale=smoke", "smoke_domains=1", "plan=[distill]", "trainer.lr=0.001", "hydra.run.dir=changed")
    done = pmemx(folder.parents[2], "run", *words)
    assert "this run made the latest version of what the bank held already: law@2 (before: law@1)" in done.stdout
    notes = json.loads((folder.parents[2] / "changed" / "record.json").read_text())["notes"]
    assert [note for note in notes if "law@2 (before: law@1)" in note]
