"""Passes of a model side by side, changes of its bank alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class SharedLock:
    """Any number of passes, or one change; a waiting change lets no new pass begin, so that it is not starved."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._passes = 0
        self._changes_waiting = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        """For the length of a pass; waits while a change is under way or waiting."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes_waiting == 0)
            self._passes += 1
        try:
            yield
        finally:
            with self._changed:
                self._passes -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no pass is under way, and let none begin."""
        with self._changed:
            self._changes_waiting += 1
            try:
                self._changed.wait_for(lambda: self._passes == 0)
                yield
            finally:
                self._changes_waiting -= 1
                self._changed.notify_all()
