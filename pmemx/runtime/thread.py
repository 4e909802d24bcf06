"""What belongs to the thread that runs a pass of a routed model."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import local

from pmemx.core.routing import Observer
from pmemx.runtime.request import Request
from pmemx.runtime.running import Pass


class PerThread(local):
    """running: the pass that the thread is in. request, observers: what it asked for its next passes. disabled: passes are
    of the base alone. entered: what the pass that runs has to leave at its end."""

    running: Pass | None = None
    request: Request = Request()
    observers: tuple[Observer, ...] = ()
    disabled: bool = False
    entered: ExitStack = ExitStack()

    @contextmanager
    def without_experts(self) -> Iterator[None]:
        """Passes inside are of the base alone."""
        before, self.disabled = self.disabled, True
        try:
            yield
        finally:
            self.disabled = before

    @contextmanager
    def within(self, running: Pass) -> Iterator[None]:
        """Sites that are reached inside belong to this pass."""
        before, self.running = self.running, running
        try:
            yield
        finally:
            self.running = before
