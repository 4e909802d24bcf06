"""Gradient checkpointing: a layer that is computed again in the backward pass must see the decisions of its own pass."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import nn

from pmemx.core.errors import PmemxError

_FUNCTION = "_gradient_checkpointing_func"


class Recomputing:
    """While passes run, whatever they checkpoint is made to be recomputed inside what `resuming` gives on their thread.

    transformers keeps the checkpointing function on each module that may be checkpointed, for all threads.
    """

    def __init__(self, model: nn.Module, resuming: Callable[[], AbstractContextManager[None]]) -> None:
        self._model, self._resuming = model, resuming
        self._lock, self._passes = Lock(), 0
        self._replaced: list[tuple[nn.Module, Any]] = []

    @contextmanager
    def during(self) -> Iterator[None]:
        """For the length of a pass. Raises PmemxError for reentrant checkpointing, which cannot be told."""
        if not (torch.is_grad_enabled() and self._model.training):
            yield
            return
        with self._lock:
            if self._passes == 0:
                self._replace()
            self._passes += 1
        try:
            yield
        finally:
            with self._lock:
                self._passes -= 1
                if self._passes == 0:
                    for module, function in self._replaced:
                        setattr(module, _FUNCTION, function)

    def _replace(self) -> None:
        found = [m for m in self._model.modules() if vars(m).get("gradient_checkpointing") and hasattr(m, _FUNCTION)]
        self._replaced = [(module, getattr(module, _FUNCTION)) for module in found]
        for _, function in self._replaced:
            if isinstance(function, partial) and function.keywords.get("use_reentrant"):
                raise PmemxError(
                    "reentrant gradient checkpointing cannot be used with a bank; enable it with use_reentrant=False"
                )
        for module, function in self._replaced:
            setattr(module, _FUNCTION, partial(function, context_fn=lambda: (nullcontext(), self._resuming())))
