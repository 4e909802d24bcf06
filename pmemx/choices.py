"""The choices of every axis, read from the YAML files of conf/ and experiments/."""

import re
from pathlib import Path

from pmemx.core.errors import ConfigError

REFERENCED = re.compile(r"\$\{(?:oc\.select:)?([A-Za-z_]\w*)(?=[}.\[,])")
"""What "${name}", "${name.key}" and "${oc.select:name.key,...}" refer to; "${hydra:...}" refers to nothing of a run's own."""


def axes(root: Path) -> list[str]:
    """The folders of conf/, and experiments."""
    return [*sorted(folder.name for folder in (root / "conf").iterdir() if folder.is_dir()), "experiments"]


def settings(root: Path) -> set[str]:
    """Names at the root of a config that mean something: the axes, and what any YAML file refers to ("${name...}")."""
    files = [file for folder in ("conf", "experiments") for file in (root / folder).rglob("*.yaml")]
    return {*axes(root), *(name for file in files for name in REFERENCED.findall(file.read_text(encoding="utf-8")))}


def choices(root: Path, axis: str) -> dict[str, str]:
    """The sentence of every YAML file of an axis, by the name that selects it ("gate=<name>").

    Raises ConfigError if there is no such axis.
    """
    if axis not in axes(root):
        raise ConfigError(f"there is no axis {axis!r}; there is {', '.join(axes(root))}")
    folder = root / axis if axis == "experiments" else root / "conf" / axis
    files = sorted(folder.rglob("*.yaml"))
    return {file.relative_to(folder).with_suffix("").as_posix(): sentence(file) for file in files}


def sentence(file: Path) -> str:
    """The first comment line that is no package directive; empty where there is none."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("#").strip()
        if not re.match(r"@package\b", text):
            return text
    return ""
