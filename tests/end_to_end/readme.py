"""The code blocks of the README in order, and a reader who runs them in a copy of the checkout."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).parents[2]
CHECKOUT = ("pmemx", "conf", "experiments", "tests", "pyproject.toml", "Makefile")
_FENCE = re.compile(r"^```(?P<kind>\S*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"`([\w/]+\.(?:py|yaml))`:\n\n\Z")
# The reader's python: one process, so that a block goes on with the names of those before it.
_PYTHON = """
import json, sys
names = {}
for line in sys.stdin:
    exec(compile(json.loads(line), "README.md", "exec"), names)
    print("\\0", flush=True)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block. output: the block of text behind it, None where there is none. file: the path that the words before
    the block end with, of a block that is to be saved there; else empty."""

    kind: str
    code: str
    output: str | None
    file: str


def blocks() -> list[Block]:
    """All blocks of the README; a "text" block is the output of the one before it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found: list[Block] = []
    end = 0
    for fence in _FENCE.finditer(text):
        if fence["kind"] == "text":
            assert found and not text[end : fence.start()].strip(), f"output of no block: {fence['code']}"
            before = found.pop()
            found.append(Block(before.kind, before.code, fence["code"], before.file))
        else:
            named = _FILE.search(text[: fence.start()])
            found.append(Block(fence["kind"], fence["code"], None, named[1] if named else ""))
        end = fence.end()
    return found


def checkout(folder: Path) -> Path:
    """A copy of the checkout with the virtual environment of these tests as its .venv."""
    for name in CHECKOUT:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    (folder / ".venv").mkdir()
    # What `make` asks whether it has installed everything since pyproject.toml changed.
    marks = (".installed", ".installed-dev")
    for part in Path(sys.prefix).iterdir():
        if part.name not in marks:
            (folder / ".venv" / part.name).symlink_to(part)
    for mark in marks:
        (folder / ".venv" / mark).touch()
    return folder


class Reader:
    """Runs blocks one after the other; close it.

    env: what the reader's shell knows beside the system's; nothing of pmemx is in it otherwise.
    """

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        system = {key: value for key, value in os.environ.items() if not key.startswith("PMEMX_")}
        path = f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}"
        self.env = system | {"PATH": path, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"} | env
        self._errors = (folder / "errors.txt").open("w+")
        self._python = subprocess.Popen(
            [sys.executable, "-c", _PYTHON],
            cwd=folder,
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def close(self) -> None:
        """End the reader's python."""
        assert self._python.stdin is not None
        self._python.stdin.close()
        self._python.wait()
        self._errors.close()

    def run(self, block: Block) -> str:
        """What a block prints; a block that names a file is saved there. Fails where a command or a statement does."""
        if block.file:
            (self.folder / block.file).write_text(block.code, encoding="utf-8")
            return ""
        if block.kind == "python":
            return self._interpreted(block.code)
        assert block.kind == "bash", f"nobody knows how to run {block.kind!r}: {block.code}"
        return self._served(block.code) if block.code.startswith("pmemx bank serve") else self.shell(block.code)

    def shell(self, code: str) -> str:
        """What commands print; the first that fails ends them."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{code}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def _interpreted(self, code: str) -> str:
        assert self._python.stdin is not None and self._python.stdout is not None
        self._python.stdin.write(json.dumps(code) + "\n")
        self._python.stdin.flush()
        printed: list[str] = []
        for line in self._python.stdout:
            if line == "\0\n":
                return "".join(printed)
            printed.append(line)
        self._errors.seek(0)
        raise AssertionError(f"{code}\n{''.join(printed)}\n{self._errors.read()[-3000:]}")

    def _served(self, code: str) -> str:
        """What a page says of its address; it is opened, and then ended as its reader would. Whatever port is free will do."""
        command = f"exec {code.split('#')[0].strip()} --port 0"
        serving = subprocess.Popen(
            ["bash", "-c", command], cwd=self.folder, env=self.env, stdout=subprocess.PIPE, text=True
        )
        assert serving.stdout is not None
        try:
            printed = serving.stdout.readline()
            with urlopen(printed.strip()) as page:
                assert page.status == 200
        finally:
            serving.send_signal(signal.SIGINT)
            ended = serving.wait()
        assert ended == 0
        return printed
