"""What a process reads when it opens a bank: python -m experiments.benchmarks.bank.opening FOLDER [DATABASE] prints JSON."""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from pmemx.store.bank import Bank

from .banks import block, name


class Watch:
    """Counts the files that this process opens, and the bytes that its calls read; Linux alone tells these."""

    def __init__(self) -> None:
        self._opened: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[object, ...]) -> None:
        if event in ("open", "sqlite3.connect", "os.listdir", "os.scandir") and str(arguments[0]) != "/proc/self/io":
            self._opened.append(str(arguments[0]))

    def during(self, step: Callable[[], object]) -> dict[str, int]:
        """Of one step. Reading the counter is itself a few hundred bytes, which are taken off."""
        own = -_bytes_read() + _bytes_read()
        self._opened.clear()
        before = _bytes_read()
        step()
        return {"files": len(self._opened), "bytes": max(0, _bytes_read() - before - own)}


def _bytes_read() -> int:
    counter = Path("/proc/self/io")
    return int(counter.read_text().split()[1]) if counter.exists() else 0


def watched(path: str, database: str) -> dict[str, dict[str, int]]:
    """Construct, ask for one version, then get its bytes."""
    with tempfile.TemporaryDirectory() as folder:
        # Another bank first, so that what Python imports on first use is not counted.
        other = Bank(folder)
        other.commit(*block(1))
        other.read(name(1))
    watch, banks = Watch(), [other]
    return {
        "construct": watch.during(lambda: banks.append(Bank(path, database))),
        "find": watch.during(lambda: banks[-1].find(name(1))),
        "read": watch.during(lambda: banks[-1].read(name(1))),
    }


if __name__ == "__main__":
    print(json.dumps(watched(sys.argv[1], "".join(sys.argv[2:]))))
