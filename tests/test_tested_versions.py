"""A dependency outside what was tested is named once at import, and every file says the same of what was tested."""

import os
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from pmemx import tested_versions
from pmemx.tested_versions import TESTED, Releases, UntestedVersion, warn_if_untested

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)


def requirements() -> dict[str, Requirement]:
    return {requirement.name: requirement for requirement in map(Requirement, PROJECT["dependencies"])}


@pytest.mark.parametrize("package", TESTED)
def test_the_project_allows_what_was_tested_and_nothing_else(package: str):
    assert requirements()[package].specifier == SpecifierSet(TESTED[package].specifier)


@pytest.mark.parametrize("package", TESTED)
def test_the_constraints_pin_the_highest_release_that_was_tested(package: str):
    assert PINS[package] == TESTED[package].highest


def test_the_constraints_pin_all_that_is_asked_for_on_any_platform():
    extras = [Requirement(line) for lines in PROJECT["optional-dependencies"].values() for line in lines]
    asked = {canonicalize_name(requirement.name) for requirement in (*requirements().values(), *extras)} - {"pmemx"}
    assert asked <= {canonicalize_name(package) for package in PINS}
    # A local build, +cpu for one, is not on every platform, and neither are the packages of CUDA.
    assert not [f"{package}=={pin}" for package, pin in PINS.items() if "+" in pin]
    assert not [package for package in PINS if re.match("nvidia|cuda|triton", package)]


def test_a_patch_of_the_highest_minor_release_counts_as_tested():
    assert Releases("5.0.0", "5.24.1").specifier == ">=5.0.0,<5.25"


def said(monkeypatch: pytest.MonkeyPatch, **versions: str) -> list[str]:
    installed = {package: tested.highest for package, tested in TESTED.items()} | versions
    monkeypatch.setattr(tested_versions, "version", installed.__getitem__)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_untested()
    assert all(issubclass(warning.category, UntestedVersion) for warning in caught)
    return [str(warning.message) for warning in caught]


def test_tested_releases_their_patches_and_local_builds_are_passed_over_in_silence(monkeypatch: pytest.MonkeyPatch):
    assert said(monkeypatch) == []
    assert said(monkeypatch, torch=TESTED["torch"].highest + "+cu130") == []
    assert said(monkeypatch, transformers=re.sub(r"\d+$", "99", TESTED["transformers"].highest)) == []
    assert said(monkeypatch, **{package: tested.lowest for package, tested in TESTED.items()}) == []


@pytest.mark.parametrize("found", ["4.57.0", "5.0.0rc1", "5.999.0", "6.0.0", "6.1.0.dev0"])
def test_an_older_or_a_newer_release_is_named_with_its_range(found: str, monkeypatch: pytest.MonkeyPatch):
    (one,) = said(monkeypatch, transformers=found)
    assert f"transformers {found} is installed, tested is {TESTED['transformers'].specifier};" in one


def test_several_releases_outside_make_one_warning(monkeypatch: pytest.MonkeyPatch):
    (one,) = said(monkeypatch, transformers="9.0.0", peft="9.0.0")
    assert "transformers 9.0.0" in one and "peft 9.0.0" in one


def test_the_import_warns_and_loads_none_of_the_packages(tmp_path: Path):
    """A newer release is played by its metadata, which stands before the true one on the path."""
    folder = tmp_path / "peft-9.9.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 9.9.0\n")
    code = "import sys, pmemx; print(sorted({'torch', 'transformers', 'peft', 'numpy'} & sys.modules.keys()))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert done.stderr.count("UntestedVersion") == 1 and "peft 9.9.0 is installed" in done.stderr
