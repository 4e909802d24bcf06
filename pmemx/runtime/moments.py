"""What the sites of a model read: uncentred second moments of their inputs over the attended tokens of given rows."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pmemx.core.encoding import Encoded, collate
from pmemx.core.errors import DataError, IncompatibleBlock
from pmemx.core.stage import Advance


@torch.no_grad()
def second_moments(
    model: nn.Module, sites: Sequence[str], rows: Sequence[Encoded], *, pad: int, batch_size: int, advance: Advance
) -> dict[str, Float[Tensor, "_width_in _width_in"]]:
    """E[x x^T] of what every site reads, summed in float32 and brought to the CPU, with whatever is attached to the model.

    rows are read whole, prompt and response. Takes width_in^2 numbers a site on the model's device. All hooks are gone
    afterwards, even after an error. Raises DataError on no rows, IncompatibleBlock for a site that the model has not, or
    that none of its passes reaches.
    """
    modules = dict(model.named_modules())
    if missing := [site for site in sites if site not in modules]:
        raise IncompatibleBlock(f"{missing[0]!r} is no part of the model; take the base that the blocks were made for")
    if not rows:
        raise DataError("there are no rows whose second moments could be taken; give at least one")
    device = next(model.parameters()).device
    readings = {site: _Reading() for site in sites}
    ordered = sorted(rows, key=lambda row: len(row.ids))
    with ExitStack() as hooks:
        for site, reading in readings.items():
            hooks.callback(modules[site].register_forward_pre_hook(reading).remove)
        for start in range(0, len(ordered), batch_size):
            chosen = ordered[start : start + batch_size]
            batch = collate(chosen, pad).to(device)
            for reading in readings.values():
                reading.attended = batch.attention
            model(input_ids=batch.ids, attention_mask=batch.attention.long(), use_cache=False)
            advance(len(chosen), "rows")
    if unread := [site for site, reading in readings.items() if not reading.tokens]:
        raise IncompatibleBlock(f"no pass of the model reaches {unread[0]!r}; merge blocks that leave it alone")
    return {site: (reading.total / reading.tokens).cpu() for site, reading in readings.items()}


class _Reading:
    """A hook of one site: x x^T summed over the attended tokens."""

    attended: Tensor

    def __init__(self) -> None:
        self.total, self.tokens = torch.zeros(()), 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0][self.attended].float()
        self.total = x.T @ x + self.total
        self.tokens += len(x)
