"""Passes of a model side by side, changes of its bank alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, local

from pmemx.core.errors import PmemxError


class _Inside(local):
    """How often the thread has entered without leaving."""

    times: int = 0


class SharedLock:
    """Any number of passes, or one change; a waiting change lets no new pass begin, so that it is not starved."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._passes = 0
        self._changes_waiting = 0
        self._inside = _Inside()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """For the length of a pass, or of several: inside, the thread enters again at once.

        Waits while a change is under way or waiting.
        """
        if not self._inside.times:
            with self._changed:
                self._changed.wait_for(lambda: self._changes_waiting == 0)
                self._passes += 1
        self._inside.times += 1
        try:
            yield
        finally:
            self._inside.times -= 1
            if not self._inside.times:
                with self._changed:
                    self._passes -= 1
                    self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no pass is under way, and let none begin. Raises PmemxError inside `shared`: it would wait for itself."""
        if self._inside.times:
            raise PmemxError(
                "this thread is in a pass, or keeps the bank unchanged; make the change when that has ended"
            )
        with self._changed:
            self._changes_waiting += 1
            try:
                self._changed.wait_for(lambda: self._passes == 0)
                yield
            finally:
                self._changes_waiting -= 1
                self._changed.notify_all()
