"""Progress bars on a terminal, and a line now and then where the output is a file."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pmemx.core.stage import Advance


class RichProgress:
    """Bars of one console; bars that are open at the same time stand below one another."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Progress | None = None
        self._open = 0

    def __call__(self, label: str, *, total: int | None = None) -> AbstractContextManager[Advance]:
        """See pmemx.core.stage.Progress."""
        return self._bar(label, total) if self.console.is_terminal else _lines(self.console, label, total)

    @contextmanager
    def _bar(self, label: str, total: int | None) -> Iterator[Advance]:
        live = self._live or Progress(
            TextColumn("{task.description:<32}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=self.console,
        )
        self._live, self._open = live, self._open + 1
        live.start()
        task = live.add_task(label, total=total, note="")

        def advance(steps: int = 1, note: str = "") -> None:
            live.update(task, advance=steps, note=note) if note else live.update(task, advance=steps)

        try:
            yield advance
        finally:
            self._open -= 1
            live.stop_task(task)
            if not self._open:
                live.stop()
                self._live = None


@contextmanager
def _lines(console: Console, label: str, total: int | None, *, every: float = 10.0) -> Iterator[Advance]:
    """One line at the end, and one every so many seconds before it."""
    start = last = time.monotonic()
    done, latest = 0, ""

    def show(now: float) -> None:
        count = f"{done}/{total}" if total is not None else f"{done}"
        console.print(f"{label}: {count} in {now - start:.1f} s {latest}".rstrip(), highlight=False, markup=False)

    def advance(steps: int = 1, note: str = "") -> None:
        nonlocal done, last, latest
        done, latest = done + steps, note or latest
        now = time.monotonic()
        if now - last >= every:
            last = now
            show(now)

    try:
        yield advance
    finally:
        show(time.monotonic())
