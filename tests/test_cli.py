"""The command line as a person meets it: in another folder, in a hurry, and with mistakes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pmemx.choices import choices, sentence
from pmemx.cli import config_root, main
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.store.folder import FolderStore

ROOT = Path(__file__).parents[1]


def run(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter outside of the checkout."""
    env = {key: value for key, value in os.environ.items() if key != "PMEMX_ROOT"} | environment
    env.setdefault("PYTHONPATH", str(ROOT))
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)


def pmemx(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(f"import sys; from pmemx.cli import main; sys.exit(main({list(arguments)!r}))", folder, **environment)


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    """Two names, one of them with two versions."""
    store = FolderStore(tmp_path / "bank")
    for name, value in (("law", 1.0), ("law", 2.0), ("medicine [new]", 3.0)):
        factors = LoraFactors(torch.full((2, 4), value), torch.ones(3, 2), 0.5)
        store.put(CapabilityBlock(BlockCard(name, name, "f" * 64, base_name="tiny"), {"layers.0.up": factors}))
    return tmp_path / "bank"


@pytest.fixture(autouse=True)
def _keep_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PMEMX_ROOT", str(ROOT))


@pytest.mark.parametrize("arguments", [["--help"], ["list", "gate"], ["bank", "list"], ["bank", "--help"]])
def test_looking_around_takes_half_a_second_and_no_torch(arguments: list[str], tmp_path: Path):
    done = run(
        "import sys, time, contextlib\n"
        "from pmemx.cli import main\n"
        "with contextlib.suppress(SystemExit):\n"
        f"    main({arguments!r})\n"
        "print(time.process_time(), *sys.modules.keys() & {'torch', 'hydra', 'lightning', 'transformers', 'numpy'}, file=sys.stderr)",
        tmp_path,
    )
    seconds, *heavy = done.stderr.split()
    assert heavy == []
    assert float(seconds) < 0.5


def test_every_axis_lists_its_choices_with_a_sentence_each(capsys: pytest.CaptureFixture[str]):
    assert main(["list"]) == 0
    axes = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"gate", "select", "distill", "metric", "experiments"} <= set(axes)
    silent = {axis: [name for name, text in choices(ROOT, axis).items() if not text] for axis in axes}
    assert {axis: names for axis, names in silent.items() if names} == {}


def test_a_new_yaml_is_listed_and_composed_with_nothing_else_edited(tmp_path: Path):
    for folder in ("conf", "experiments"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "conf/gate/mine.yaml").write_text("# My own gate.\n_target_: pmemx.gate.mine.Mine\nsharpness: 3\n")
    environment = {"PMEMX_ROOT": str(tmp_path)}
    listed = pmemx(tmp_path, "list", "gate", **environment).stdout.splitlines()
    assert "My own gate." in next(line for line in listed if line.startswith("mine "))
    composed = pmemx(
        tmp_path, "run", "gate=mine", "gate.sharpness=5", "--cfg", "job", "--package", "gate", **environment
    )
    assert composed.stdout.splitlines()[-2:] == ["_target_: pmemx.gate.mine.Mine", "sharpness: 5"]


def test_the_sentence_of_a_choice_is_its_first_comment_that_is_no_directive(tmp_path: Path):
    file = tmp_path / "x.yaml"
    file.write_text("# @package _global_\n# What it is.\n# More.\na: 1\n# later\n")
    assert sentence(file) == "What it is."
    file.write_text("a: 1\n# later\n")
    assert sentence(file) == ""


def test_an_unknown_axis_names_those_that_exist():
    with pytest.raises(ConfigError, match=r"no axis 'gates'; there is .*gate"):
        choices(ROOT, "gates")


def test_a_misfit_ends_a_run_before_any_work_without_a_traceback(tmp_path: Path):
    done = pmemx(tmp_path, "run", "select=softmax", "+select.temprature=2", "plan=[train_gate, evalute, evaluate]")
    assert done.returncode == 1
    assert "select.temprature: Softmax takes no 'temprature'; did you mean 'temperature'?" in done.stderr
    assert "plan: no stage 'evalute'; did you mean 'evaluate'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.rglob("record.json")] == []


def test_the_root_is_the_checkout_unless_the_environment_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("PMEMX_ROOT")
    assert config_root() == ROOT
    monkeypatch.setenv("PMEMX_ROOT", str(tmp_path))
    assert config_root() == tmp_path


def test_a_bank_is_listed_shown_and_followed_through_its_history(bank: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["bank", "list", "--json", "--bank", str(bank)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["version"], row["rank"], row["sites"]) for row in rows] == [
        ("law", 2, 2, 1),
        ("medicine [new]", 1, 2, 1),
    ]
    assert main(["bank", "history", "law", "--json", "--bank", str(bank)]) == 0
    assert [row["version"] for row in json.loads(capsys.readouterr().out)] == [1, 2]
    assert main(["bank", "show", "law@1", "--bank", str(bank)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["version"], shown["card"]["base_name"], shown["sites"][0]["scale"]) == (1, "tiny", 0.5)
    assert main(["bank", "list", "--bank", str(bank)]) == 0
    assert "medicine [new]" in capsys.readouterr().out


def test_rollback_and_tag_move_names_and_keep_history(bank: Path, capsys: pytest.CaptureFixture[str]):
    main(["bank", "rollback", "law", "1", "--json", "--bank", str(bank)])
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["version"], row["restores"]) == (3, 1)
    main(["bank", "tag", "law@2", "stable", "--json", "--bank", str(bank)])
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["version"], row["tags"]) == (2, ["stable"])
    assert len(FolderStore(bank).history("law")) == 3


def test_an_exported_block_is_imported_with_the_same_factors(
    bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["bank", "export", str(tmp_path / "out"), "law", "--bank", str(bank)]) == 0
    folder = capsys.readouterr().out.strip()
    other = tmp_path / "other"
    assert main(["bank", "import", folder, "--name", "imported", "--bank", str(other)]) == 0
    (before, after) = (FolderStore(bank).get("law"), FolderStore(other).get("imported"))
    assert torch.equal(before.factors["layers.0.up"].A, after.factors["layers.0.up"].A)
    assert torch.equal(before.factors["layers.0.up"].delta(), after.factors["layers.0.up"].delta())


def test_a_folder_that_is_refused_does_not_stop_the_others(
    bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    main(["bank", "export", str(tmp_path / "out"), "law", "--bank", str(bank)])
    good = capsys.readouterr().out.strip()
    (tmp_path / "empty").mkdir()
    other = tmp_path / "other"
    assert main(["bank", "import", str(tmp_path / "empty"), good, "--bank", str(other)]) == 1
    assert "1 of 2 folders refused" in capsys.readouterr().err
    assert len(FolderStore(other).names()) == 1


def test_verify_names_a_changed_byte_and_fails(bank: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["bank", "verify", "--bank", str(bank)]) == 0
    assert capsys.readouterr().out == "sound: 2 blocks, every byte as it was written\n"
    blob = max((path for path in bank.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(bytes(data))
    assert main(["bank", "verify", "--bank", str(bank)]) == 1
    assert capsys.readouterr().out != ""


def test_a_deliberate_error_is_one_line_and_exit_code_1(bank: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["bank", "show", "lwa", "--bank", str(bank)]) == 1
    assert capsys.readouterr().err.startswith("UnknownBlock: no block 'lwa'")
