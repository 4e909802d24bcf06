"""Gradient checkpointing: a layer that is computed again in the backward pass must see the decisions of its own pass."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn

from pmemx.core.errors import PmemxError

_FUNCTION = "_gradient_checkpointing_func"


@contextmanager
def recomputing(model: nn.Module, resumed: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """For the length of a pass, let whatever it checkpoints be recomputed inside resumed(), on whichever thread that is.

    transformers keeps the checkpointing function on each module that may be checkpointed. Raises PmemxError for reentrant
    checkpointing, which cannot be told.
    """
    found = []
    if torch.is_grad_enabled() and model.training:
        found = [m for m in model.modules() if vars(m).get("gradient_checkpointing") and hasattr(m, _FUNCTION)]
    functions = [getattr(module, _FUNCTION) for module in found]
    for function in functions:
        if isinstance(function, partial) and function.keywords.get("use_reentrant"):
            raise PmemxError(
                "reentrant gradient checkpointing cannot be used with a bank; enable it with use_reentrant=False"
            )
    for module, function in zip(found, functions, strict=True):
        setattr(module, _FUNCTION, partial(function, context_fn=lambda: (nullcontext(), resumed())))
    try:
        yield
    finally:
        for module, function in zip(found, functions, strict=True):
            setattr(module, _FUNCTION, function)
