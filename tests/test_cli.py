"""The command line as a person meets it: in another folder, in a hurry, and with mistakes."""

import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from pmemx.choices import choices, sentence
from pmemx.cli import config_root, main
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.store.governed import GovernedStore

ROOT = Path(__file__).parents[1]


def run(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter outside of the checkout."""
    env = {key: value for key, value in os.environ.items() if key != "PMEMX_ROOT"} | environment
    env.setdefault("PYTHONPATH", str(ROOT))
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)


def pmemx(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(f"import sys; from pmemx.cli import main; sys.exit(main({list(arguments)!r}))", folder, **environment)


@pytest.fixture(autouse=True)
def _keep_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PMEMX_ROOT", str(ROOT))


@pytest.mark.parametrize(
    "arguments", [["--help"], ["bank", "--help"], ["bank", "list", "--help"], ["list", "gate"], ["completion", "bash"]]
)
def test_looking_around_imports_neither_torch_nor_a_database(arguments: list[str], tmp_path: Path):
    assert imported_by(arguments, tmp_path) == []


def test_listing_a_bank_imports_no_torch(tmp_path: Path):
    (tmp_path / "bank").mkdir()
    assert imported_by(["bank", "list", "--bank", "bank"], tmp_path) == ["sqlalchemy"]


def imported_by(arguments: list[str], folder: Path) -> list[str]:
    """What a command imports of all that takes long to import."""
    heavy = {"torch", "hydra", "lightning", "transformers", "numpy", "sqlalchemy", "huggingface_hub", "fastapi"}
    done = run(
        "import sys, contextlib\n"
        "from pmemx.cli import main\n"
        "with contextlib.suppress(SystemExit):\n"
        f"    main({arguments!r})\n"
        f"print(*sorted(sys.modules.keys() & {heavy!r}), file=sys.stderr)",
        folder,
    )
    return done.stderr.split()


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


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (["experimnts=quickstart"], "experimnts: there is no such setting; did you mean 'experiments'?"),
        (["gates=linear"], "gates: there is no such setting; did you mean 'gate'?"),
        (["trainer.stepz=3"], "trainer.stepz: there is no such setting; did you mean 'steps'?"),
        (["gate=linaer"], "gate=linaer: there is no such choice; did you mean 'linear'?"),
        (["experiments=quikstart"], "experiments=quikstart: there is no such choice; did you mean 'quickstart'?"),
        (
            ["data.domains=Öl"],
            "'data.domains=Öl' cannot be read as an override; quote a value that is no plain word twice",
        ),
        (["gate=linear,linaer", "-m"], "gate=linaer: there is no such choice; did you mean 'linear'?"),
        (["plan=[distill"], "'plan=[distill' cannot be read as an override"),
    ],
)
def test_what_does_not_compose_is_told_in_one_sentence(
    said: list[str], answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pmemx.cli_run._launch", lambda config, known: None)
    assert main(["run", *said]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"ConfigError: {answer}") and len(told.splitlines()) == 1


def test_the_name_of_the_experiment_is_not_how_one_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["run", "experiment=quickstart"])
    assert left.value.code == 1
    assert capsys.readouterr().err.endswith("did you mean experiments=quickstart?\n")


def test_a_run_folder_that_cannot_be_made_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").touch()
    assert main(["run", "seed=0"]) == 6
    told = capsys.readouterr().err
    assert told.startswith("StorageError: the folder of the run cannot be made (") and len(told.splitlines()) == 1


def test_the_help_of_run_is_one_screen(capsys: pytest.CaptureFixture[str]):
    for option in ("--help", "-h"):
        with pytest.raises(SystemExit) as left:
            main(["run", "experiments=quickstart", option])
        lines = capsys.readouterr().out.splitlines()
        assert left.value.code == 0
        assert lines[0] == "usage: pmemx run [axis=choice ...] [key=value ...] [-m] [--cfg job]"
        assert 24 <= len(lines) <= 40 and max(map(len, lines)) <= 110


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert (left.value.code, capsys.readouterr().out) == (0, f"pmemx {declared}\n")


def test_the_root_is_the_checkout_unless_the_environment_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("PMEMX_ROOT")
    assert config_root() == ROOT
    monkeypatch.setenv("PMEMX_ROOT", str(tmp_path))
    assert config_root() == tmp_path


def test_a_command_that_makes_no_sense_has_another_code_than_a_run_that_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["list", "gates"]) == 2
    assert capsys.readouterr().err.startswith("ConfigError: there is no axis 'gates'; there is ")
    with pytest.raises(SystemExit) as left:
        main(["bank", "lst"])
    assert left.value.code == 2
    assert pmemx(tmp_path, "run", "select=softmax", "+select.temprature=2").returncode == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_a_shell_learns_every_verb(shell: str, capsys: pytest.CaptureFixture[str]):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("unarchive", "verify-export", "snapshot", "take", "namespace", "archive-below"):
        assert word in script


def completed(line: str, folder: Path, script: Path, **environment: str) -> list[str]:
    """What bash offers for the last word of a line."""
    words = line.split(" ")
    quoted = " ".join(shlex.quote(word) for word in words)
    code = (
        f"source {shlex.quote(str(script))}\n"
        f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; COMP_LINE={shlex.quote(line)}\n"
        '_shtab_pmemx; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", code], cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_verbs_options_files_and_names_of_blocks_and_runs_nothing_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "pmemx"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom pmemx.cli import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    store = GovernedStore(tmp_path / "my bank")
    for name in ("law", "lawyers", "medicine", "$(touch owned)", "`touch owned`", "law; touch owned"):
        factors = LoraFactors(torch.ones(2, 4), torch.ones(3, 2), 0.5)
        store.put(CapabilityBlock(BlockCard(name, name, "f" * 64), {"layers.0.up": factors}))
    main(["completion", "bash"])
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PMEMX_BANK": str(tmp_path / "my bank")}
    assert completed("pmemx ba", tmp_path, script, **environment) == ["bank"]
    assert completed("pmemx bank unar", tmp_path, script, **environment) == ["unarchive"]
    assert completed("pmemx bank snapshot d", tmp_path, script, **environment) == ["drop"]
    assert completed("pmemx bank sweep --exp", tmp_path, script, **environment) == ["--expire-archived-after"]
    assert completed("pmemx bank grant ada ed", tmp_path, script, **environment) == ["editor"]
    assert completed("pmemx bank verify-export bi", tmp_path, script, **environment) == ["bin"]
    assert completed("pmemx bank show ", tmp_path, script, **environment) == ["law", "lawyers", "medicine"]
    assert completed("pmemx bank show lawy", tmp_path, script, **environment) == ["lawyers"]
    assert completed("pmemx bank show --bank nowhere la", tmp_path, script, **environment) == []
    assert not (tmp_path / "owned").exists()
