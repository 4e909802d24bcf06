"""Where a run comes from: commit, package versions, and the digest and seeds of its settings."""

import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pmemx.core.canonical import digest

PACKAGES = ("pmemx", "torch", "transformers", "peft", "lightning", "hydra-core", "safetensors", "numpy")
VOLATILE = ("run_folder", "logger", "notice")
NOT_OF_ANSWERS = ("seed", "plan", "summary", "metric", "metrics", "store", "bank_folder", "bank_of_seed")
"""Settings that runs of one study may differ in."""
REPORTING = ("study", "growth_study", "export")
"""Stages that answer nothing, by name."""


def commit() -> str:
    """The commit of the checkout that this code lies in, "+" appended if files differ from it; empty outside of one."""
    folder = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (FileNotFoundError, subprocess.CalledProcessError):  # no git, no checkout, or no commit yet
        return ""
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on; what runs without being installed has none."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def settings_digest(settings: Mapping[str, object]) -> str:
    """Digest of a resolved config, without where it writes and logs and what it tells: equal for runs that must give equal numbers."""
    return digest({key: value for key, value in settings.items() if key not in VOLATILE})


def experiment_digest(settings: Mapping[str, object]) -> str:
    """Digest of what a run's answers come from, but for its seeds: equal for runs that a study may pool."""
    stages = settings.get("stage")
    answering = {k: v for k, v in stages.items() if k not in REPORTING} if isinstance(stages, Mapping) else stages
    return settings_digest(_of_answers({**settings, "stage": answering}))


def _of_answers(node: Mapping[str, object]) -> dict[str, object]:
    return {key: _value_of_answers(value) for key, value in node.items() if key not in NOT_OF_ANSWERS}


def _value_of_answers(value: object) -> object:
    if isinstance(value, Mapping):
        return _of_answers(value)
    return [_value_of_answers(item) for item in value] if isinstance(value, list | tuple) else value


def seeds(settings: Mapping[str, object]) -> dict[str, int]:
    """Every seed of a resolved config, by its path; stages only repeat those of their axes."""
    return dict(_seeds({key: value for key, value in settings.items() if key != "stage"}, ""))


def _seeds(node: Mapping[str, object], path: str) -> Iterator[tuple[str, int]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _seeds(value, f"{path}{key}.")
        elif key == "seed" and isinstance(value, int):
            yield f"{path}{key}", value
