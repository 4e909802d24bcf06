"""A missing extra names a command that works where the user stands."""

import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from pmemx.core import extras
from pmemx.core.extras import Extra, install

ROOT = Path(__file__).parents[2]


def test_in_a_checkout_the_command_is_that_of_its_own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(extras, "_ROOT", tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.chdir(tmp_path)
    assert install("serve") == '.venv/bin/python -m pip install -e ".[serve]"'
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert install("serve") == f'{tmp_path}/.venv/bin/python -m pip install -e "{tmp_path}[serve]"'


def test_beside_a_wheel_the_command_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(extras, "_ROOT", tmp_path)
    monkeypatch.setattr(sys, "executable", "/opt/python")
    assert install("sign") == '/opt/python -m pip install "pmemx[sign]"'


def test_every_extra_stands_in_pyproject():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(get_args(Extra)) == declared.keys() - {"dev"}
