"""What a composition costs, in operations: multiply-adds of matrix products, counted and not timed."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pmemx.core.encoding import Encoded, collate
from pmemx.runtime.attach import Routed

Shape = Sequence[int]


def _product(
    into: Shape, left: Shape, right: Shape, *, beta: float = 1, alpha: float = 1, out_shape: Shape = ()
) -> int:
    return 2 * math.prod(left) * right[-1]


# The counter of torch does not know the products that write in place.
_IN_PLACE = {torch.ops.aten.addmm_: _product, torch.ops.aten.baddbmm_: _product}


@torch.no_grad()
def multiply_adds(
    model: nn.Module, rows: Sequence[tuple[Sequence[Encoded], int]], *, pad: int, routed: Routed | None = None
) -> float:
    """Multiply-adds of one pass over each group of rows, given with its true choice; the passes that gates ask for included.

    Looking a weight up, sorting and elementwise work are no products and do not count.
    """
    device = next(model.parameters()).device
    counter = FlopCounterMode(display=False, custom_mapping=_IN_PLACE)
    for group, choice in rows:
        batch = collate(group, pad).to(device)
        attention = batch.attention.long()
        if routed is None:
            with counter:
                model(input_ids=batch.ids, attention_mask=attention, use_cache=False)
            continue
        domain = torch.full((len(group),), choice, device=device)
        with routed.given(prompt=batch.prompt, domain=domain), counter:
            model(input_ids=batch.ids, attention_mask=attention, use_cache=False)
    return counter.get_total_flops() / 2
