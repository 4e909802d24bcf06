"""Low-rank products whose backward pass keeps numbers of rank width only, never the input and never an output per expert."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pmemx.core.bank import Layout

Factors = tuple[Tensor, Tensor]
"""A and B of one expert at one site."""


class DenseProduct(torch.autograd.Function):
    """(x A^T * w) B over all rows of a site, one weight a slot."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "batch token width_in"],
        weight: Float[Tensor, "batch decision slot"],
        A: Float[Tensor, "row width_in"],
        B: Float[Tensor, "row width_out"],
        layout: Layout,
    ) -> Float[Tensor, "batch token width_out"]:
        """weight is shared along a dimension of size 1."""
        low = x @ A.T
        ctx.save_for_backward(low, weight, A, B)
        ctx.layout = layout
        return layout.weigh(low, weight) @ B

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients to x and the weights; the factors are frozen."""
        low, weight, A, B = ctx.saved_tensors
        back = grads[0] @ B.T
        to_weight = None
        if ctx.needs_input_grad[1]:
            to_weight = ctx.layout.by_slot(back * low).sum_to_size(weight.shape)
        to_x = ctx.layout.weigh(back, weight) @ A if ctx.needs_input_grad[0] else None
        return to_x, to_weight, None, None, None


def rows_of(
    factors: Float[Tensor, "row width"], index: Int[Tensor, "batch chosen_row"]
) -> Float[Tensor, "batch chosen_row width"]:
    """factors[index]; index_select is several times faster at that on a processor."""
    return factors.index_select(0, index.flatten()).view(*index.shape, factors.shape[1])


class GatheredProduct(torch.autograd.Function):
    """(x A_b^T * w_b) B_b, where every row b of the batch has its own rows of a site; gathered again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "batch token width_in"],
        weight: Float[Tensor, "batch chosen_row"],
        A: Float[Tensor, "row width_in"],
        B: Float[Tensor, "row width_out"],
        index: Int[Tensor, "batch chosen_row"],
    ) -> Float[Tensor, "batch token width_out"]:
        """weight and index by the chosen rows."""
        low = x @ rows_of(A, index).mT
        ctx.save_for_backward(low, weight, A, B, index)
        return (low * weight[:, None]) @ rows_of(B, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients to x and the weights; the factors are frozen."""
        low, weight, A, B, index = ctx.saved_tensors
        back = grads[0] @ rows_of(B, index).mT
        to_x = (back * weight[:, None]) @ rows_of(A, index) if ctx.needs_input_grad[0] else None
        to_weight = (back * low).sum(dim=1) if ctx.needs_input_grad[1] else None
        return to_x, to_weight, None, None, None


def segments_down(
    x: Float[Tensor, "pair width"], rows: Sequence[Float[Tensor, "_ width"]], sizes: Sequence[int]
) -> Float[Tensor, "pair room"]:
    """Every segment of x times the transposed rows of its own expert, zeros to the right of an expert with fewer rows."""
    low = x.new_zeros(x.shape[0], max((own.shape[0] for own in rows), default=0))
    for segment, part, own in zip(x.split(sizes), low.split(sizes), rows, strict=True):
        torch.mm(segment, own.T, out=part[:, : own.shape[0]])
    return low


def segments_up(
    low: Float[Tensor, "pair room"], rows: Sequence[Float[Tensor, "_ width"]], sizes: Sequence[int]
) -> Float[Tensor, "pair width"]:
    """Every segment of low times the rows of its own expert."""
    out = low.new_empty(low.shape[0], rows[0].shape[1])
    for segment, part, own in zip(low.split(sizes), out.split(sizes), rows, strict=True):
        torch.mm(segment[:, : own.shape[0]], own, out=part)
    return out


class SegmentedProduct(torch.autograd.Function):
    """sum_p w_p (x_{t(p)} A_e^T) B_e over pairs p of a token t(p) and an expert e, sorted by expert."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "token width_in"],
        weight: Float[Tensor, " pair"],
        token: Int[Tensor, " pair"],
        sizes: tuple[int, ...],
        factors: tuple[Factors, ...],
    ) -> Float[Tensor, "token width_out"]:
        """factors and sizes: of every expert in use, and how many pairs it has."""
        A, B = zip(*factors, strict=True)
        low = segments_down(x.index_select(0, token), A, sizes)
        out = segments_up(low * weight[:, None], B, sizes)
        # Saved as tensors, so that autograd refuses a backward pass over factors that were written meanwhile.
        ctx.save_for_backward(low, weight, token, *A, *B)
        ctx.sizes = sizes
        return x.new_zeros(x.shape[0], out.shape[1]).index_add_(0, token, out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients to x and the weights; the factors are frozen."""
        low, weight, token, *factors = ctx.saved_tensors
        A, B = factors[: len(ctx.sizes)], factors[len(ctx.sizes) :]
        back = segments_down(grads[0].index_select(0, token), B, ctx.sizes)
        to_x = None
        if ctx.needs_input_grad[0]:
            out = segments_up(back * weight[:, None], A, ctx.sizes)
            to_x = out.new_zeros(grads[0].shape[0], out.shape[1]).index_add_(0, token, out)
        to_weight = (back * low).sum(dim=1) if ctx.needs_input_grad[1] else None
        return to_x, to_weight, None, None, None
