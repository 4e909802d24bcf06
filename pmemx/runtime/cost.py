"""What a composition costs, in operations: multiply-adds of matrix products, counted and not timed."""

import math
from collections.abc import Sequence
from contextlib import nullcontext

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


def _attention(
    query: Shape,
    key: Shape,
    value: Shape,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Shape | None = None,
    scale: float | None = None,
    out_shape: object = (),
) -> int:
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


# The counter of torch does not know the products that write in place, nor attention on a processor.
_UNKNOWN = {
    torch.ops.aten.addmm_: _product,
    torch.ops.aten.baddbmm_: _product,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}


@torch.no_grad()
def multiply_adds(
    model: nn.Module, rows: Sequence[tuple[Sequence[Encoded], int]], *, pad: int, routed: Routed | None = None
) -> float:
    """Multiply-adds of one pass over each group of rows, given with its true choice; the passes that gates ask for included.

    Looking a weight up, sorting and elementwise work are no products and do not count.
    """
    device = next(model.parameters()).device
    total = 0
    for group, choice in rows:
        batch = collate(group, pad).to(device)
        domain = torch.full((len(group),), choice, device=device)
        given = nullcontext() if routed is None else routed.given(prompt=batch.prompt, domain=domain)
        # A counter of its own for every pass: it forgets when it is entered again.
        with given, FlopCounterMode(display=False, custom_mapping=_UNKNOWN) as counter:
            model(input_ids=batch.ids, attention_mask=batch.attention.long(), use_cache=False)
        total += counter.get_total_flops()
    return total / 2
