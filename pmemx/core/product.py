"""Low-rank products whose backward pass keeps numbers of rank width only, never the input and never an output per expert."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx

Span = tuple[int, int, int, int]
"""Rows [first, last) of a site serve the pairs [begin, end) of a list that is sorted by expert."""


class DenseProduct(torch.autograd.Function):
    """(x A^T * w) B over all rows of a site, one weight an expert."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Float[Tensor, "batch token width_in"],
        weight: Float[Tensor, "batch decision expert"],
        A: Float[Tensor, "row width_in"],
        B: Float[Tensor, "row width_out"],
        owner: Int[Tensor, " row"],
    ) -> Float[Tensor, "batch token width_out"]:
        """weight is shared along a dimension of size 1; owner is the expert of each row."""
        low = x @ A.T
        ctx.save_for_backward(low, weight, A, B, owner)
        return (low * weight.index_select(2, owner)) @ B

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients to x and the weights; the factors are frozen."""
        low, weight, A, B, owner = ctx.saved_tensors
        back = grads[0] @ B.T
        to_x = (back * weight.index_select(2, owner)) @ A if ctx.needs_input_grad[0] else None
        to_weight = None
        if ctx.needs_input_grad[1]:
            to_weight = back.new_zeros(*low.shape[:2], weight.shape[2]).index_add_(2, owner, back * low)
            to_weight = to_weight.sum_to_size(weight.shape)
        return to_x, to_weight, None, None, None


class GatheredProduct(torch.autograd.Function):
    """(x A_b^T * w_b) B_b, where every row b of the batch has its own rows of a site; gathered again in the backward pass."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Float[Tensor, "batch token width_in"],
        weight: Float[Tensor, "batch chosen_row"],
        A: Float[Tensor, "row width_in"],
        B: Float[Tensor, "row width_out"],
        index: Int[Tensor, "batch chosen_row"],
    ) -> Float[Tensor, "batch token width_out"]:
        """weight and index by the chosen rows."""
        low = x @ A[index].mT
        ctx.save_for_backward(low, weight, A, B, index)
        return (low * weight[:, None]) @ B[index]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients to x and the weights; the factors are frozen."""
        low, weight, A, B, index = ctx.saved_tensors
        back = grads[0] @ B[index].mT
        to_x = (back * weight[:, None]) @ A[index] if ctx.needs_input_grad[0] else None
        to_weight = (back * low).sum(dim=1) if ctx.needs_input_grad[1] else None
        return to_x, to_weight, None, None, None


class SegmentedProduct(torch.autograd.Function):
    """sum_p w_p (x_{t(p)} A_e^T) B_e over pairs p of a token t(p) and an expert e, sorted by expert."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "token width_in"],
        weight: Float[Tensor, " pair"],
        A: Float[Tensor, "row width_in"],
        B: Float[Tensor, "row width_out"],
        token: Int[Tensor, " pair"],
        spans: tuple[Span, ...],
    ) -> Float[Tensor, "token width_out"]:
        """spans: see Span. An expert's rows are read in place."""
        out = x.new_zeros(x.shape[0], B.shape[1])
        low = x.new_zeros(token.shape[0], max((last - first for first, last, _, _ in spans), default=0))
        for first, last, begin, end in spans:
            one = x[token[begin:end]] @ A[first:last].T
            low[begin:end, : last - first] = one
            out.index_add_(0, token[begin:end], (one * weight[begin:end, None]) @ B[first:last])
        ctx.save_for_backward(low, weight, A, B, token)
        ctx.spans = spans
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients to x and the weights; the factors are frozen."""
        low, weight, A, B, token = ctx.saved_tensors
        to_x = grads[0].new_zeros(grads[0].shape[0], A.shape[1]) if ctx.needs_input_grad[0] else None
        to_weight = torch.zeros_like(weight)
        for first, last, begin, end in ctx.spans:
            back = grads[0][token[begin:end]] @ B[first:last].T
            to_weight[begin:end] = (back * low[begin:end, : last - first]).sum(dim=1)
            if to_x is not None:
                to_x.index_add_(0, token[begin:end], (back * weight[begin:end, None]) @ A[first:last])
        return to_x, to_weight if ctx.needs_input_grad[1] else None, None, None, None, None
