"""The wheel holds all that a run needs, and works far from the checkout."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the wheel, unpacked as an installer would."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def pmemx(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "PMEMX_ROOT"} | {"PYTHONPATH": str(site)}
    code = f"import sys; from pmemx.cli import main; sys.exit(main({list(arguments)!r}))"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)


def files(folder: Path, pattern: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob(pattern) if "__pycache__" not in path.parts}


def test_the_wheel_ships_every_module_config_and_experiment(installed: Path):
    assert files(installed / "pmemx", "*.py") == files(ROOT / "pmemx", "*.py")
    assert files(installed / "pmemx/conf", "*.yaml") == files(ROOT / "conf", "*.yaml")
    assert files(installed / "pmemx/experiments", "*.yaml") == files(ROOT / "experiments", "*.yaml")
    assert (installed / "pmemx/py.typed").exists()
    for pattern in ("*.safetensors", "*.html", "*.css", "*.svg"):
        assert files(ROOT / "pmemx", pattern) <= files(installed / "pmemx", pattern)


def test_an_installed_wheel_composes_a_run_from_any_folder(installed: Path, tmp_path: Path):
    composed = pmemx(installed, tmp_path, "run", "gate=linear", "seed=3", "--cfg", "job")
    assert "_target_: pmemx.gate.linear.LinearGate" in composed.stdout
    assert "seed: 3" in composed.stdout.splitlines()


def test_an_installed_wheel_lists_what_the_checkout_lists(installed: Path, tmp_path: Path):
    assert pmemx(installed, tmp_path, "list", "gate").stdout == pmemx(ROOT, tmp_path, "list", "gate").stdout


def test_the_licence_is_apache_2_and_stated_so():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["license"] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_lightning_is_pinned_past_its_malicious_releases():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "lightning>=2.6.6,<2.7" in project["dependencies"]


def test_the_libraries_of_a_run_print_nothing_at_import(tmp_path: Path):
    """Of what the tests need, torchao and bitsandbytes print whenever PEFT is imported: no command may find them."""
    code = "import pmemx.adapter.lora, pmemx.base_model.hf, pmemx.lit.fit, pmemx.stage.plan"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout + done.stderr == "", "an environment of before holds both: remove .venv and run make again"
