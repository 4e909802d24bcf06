"""The command that installs an extra: from a checkout, or beside an installed wheel."""

import os
import sys
from pathlib import Path
from typing import Literal

Extra = Literal["tensorboard", "postgres", "s3", "sign", "serve"]
_ROOT = Path(__file__).parents[2]


def install(extra: Extra) -> str:
    """A command for the interpreter that runs, as [project.optional-dependencies] in pyproject.toml names extras.

    In the folder of the checkout it is `.venv/bin/python -m pip install -e ".[serve]"`, elsewhere it has whole paths; without a
    checkout it is `python -m pip install "pmemx[serve]"`.
    """
    python = _short(Path(sys.executable))
    if (_ROOT / "pyproject.toml").is_file():
        return f'{python} -m pip install -e "{_short(_ROOT)}[{extra}]"'
    return f'{python} -m pip install "pmemx[{extra}]"'


def _short(path: Path) -> str:
    """Relative to the current folder where it is that or lies below it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
