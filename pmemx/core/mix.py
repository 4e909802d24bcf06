"""The routed product: the weighted updates of the chosen experts, added to what a site put out.

No way of computing it builds a [token, expert, width] tensor. A plan is made once for a decision and shared by the sites
that follow it.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pmemx.core.bank import Layout, SiteFactors
from pmemx.core.product import DenseProduct, GatheredProduct, SegmentedProduct
from pmemx.core.routing import Routing

Mixing = Literal["after", "before"]
"""after: the weighted sum of the experts' outputs. before: one expert of weighted factors, (sum w B)(sum w A), whose
cross terms B_f A_e make it another function (arXiv:2306.03745)."""


class Mix(ABC):
    """A routing, made ready for the sites that share it.

    What needs a gradient is not kept from one site for the next: a checkpointed layer, which is computed again by itself,
    must save the same tensors both times.
    """

    @abstractmethod
    def add(
        self, y: Float[Tensor, "batch token width_out"], x: Float[Tensor, "batch token width_in"], site: SiteFactors
    ) -> Float[Tensor, "batch token width_out"]:
        """y plus the experts' part for x. y itself is changed where no gradient is recorded."""


class NoMix(Mix):
    """Nothing was chosen anywhere: the base answers."""

    def add(self, y: Tensor, x: Tensor, site: SiteFactors) -> Tensor:
        """y as it is."""
        return y


class DenseMix(Mix):
    """Two matrix products over all rows of a site: E*r*d multiplies a token instead of E*d*d."""

    def __init__(self, routing: Routing, mixing: Mixing) -> None:
        self.weight, self.mixing = routing.dense(), mixing
        self._by_row: dict[tuple[int, torch.dtype], Tensor] = {}

    def add(self, y: Tensor, x: Tensor, site: SiteFactors) -> Tensor:
        """See Mix."""
        x, A, B = x.to(y.dtype), site.A.to(y.dtype), site.B.to(y.dtype)
        if self.mixing == "after" and _records(x, self.weight):
            weight = self.weight.to(y.dtype).expand(x.shape[0], -1, -1)
            return y + DenseProduct.apply(x, weight, A, B, site.layout.owner)  # pyright: ignore[reportOperatorIssue]
        low = _weighed(x @ A.T, self._weight_by_row(site.layout, y.dtype), site.layout.place, self.mixing, site.layout)
        return _add_product(y, low, B)

    def _weight_by_row(self, layout: Layout, dtype: torch.dtype) -> Tensor:
        key = layout.number, dtype
        if (known := self._by_row.get(key)) is not None:
            return known
        weight = self.weight.to(dtype).index_select(2, layout.owner)
        if not weight.requires_grad:
            self._by_row[key] = weight
        return weight


class SequenceMix(Mix):
    """One decision a sequence: every row of the batch gathers its own experts, once for all passes that follow the decision.

    Neither the work nor the bits of the result depend on how many experts the bank holds.
    """

    def __init__(self, routing: Routing, mixing: Mixing) -> None:
        self.index, self.weight, self.mixing = routing.index[:, 0], routing.weight[:, 0], mixing
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}
        self._gathered: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}

    def add(self, y: Tensor, x: Tensor, site: SiteFactors) -> Tensor:
        """See Mix."""
        x = x.to(y.dtype)
        index, weight = self._chosen_rows(site.layout)
        if self.mixing == "before":
            low = x @ site.A[index].to(y.dtype).mT
            place = site.layout.place[index][:, None]
            low = _weighed(low, weight.to(y.dtype)[:, None], place, self.mixing, site.layout)
            return y + low @ site.B[index].to(y.dtype)
        if _records(x, weight):
            A, B, rows = site.A.to(y.dtype), site.B.to(y.dtype), x.shape[0]
            weight, index = weight.to(y.dtype).expand(rows, -1), index.expand(rows, -1)
            return y + GatheredProduct.apply(x, weight, A, B, index)  # pyright: ignore[reportOperatorIssue]
        key = site.number, y.dtype
        if key not in self._gathered:
            # The weight goes into B here, which saves a pass over the tokens of every site.
            B = site.B[index] * weight[..., None].to(site.B.dtype)
            self._gathered[key] = (site.A[index].to(y.dtype), B.to(y.dtype))
        A, B = self._gathered[key]
        if index.shape[0] == 1:
            return _add_product(y, x @ A[0].T, B[0])
        if y.is_contiguous() and not _records(y):
            return y.baddbmm_(torch.bmm(x, A.mT), B)
        return y + torch.bmm(torch.bmm(x, A.mT), B)

    def _chosen_rows(self, layout: Layout) -> tuple[Tensor, Tensor]:
        if (known := self._rows.get(layout.number)) is not None:
            return known
        index = layout.rows[self.index].flatten(1)
        weight = (self.weight[..., None] * layout.real[self.index]).flatten(1)
        if not weight.requires_grad:
            self._rows[layout.number] = index, weight
        return index, weight


class SegmentMix(Mix):
    """Token-level top-k: tokens are sorted by expert once, and every expert in use reads its segment."""

    def __init__(self, routing: Routing) -> None:
        pairs = _Pairs(routing)
        self.token, self.weight, self.spans = pairs.token, pairs.weight, pairs.spans

    def add(self, y: Tensor, x: Tensor, site: SiteFactors) -> Tensor:
        """See Mix."""
        flat = x.to(y.dtype).flatten(0, -2)
        A, B, weight = site.A.to(y.dtype), site.B.to(y.dtype), self.weight.to(y.dtype)
        spans = tuple((*_rows_of(site.layout, slot), begin, end) for slot, begin, end in self.spans)
        if _records(x, self.weight, y) or not y.is_contiguous():
            return y + SegmentedProduct.apply(flat, weight, A, B, self.token, spans).view_as(y)  # pyright: ignore
        out = y.view(-1, y.shape[-1])
        for first, last, begin, end in spans:
            token = self.token[begin:end]
            low = (flat[token] @ A[first:last].T).mul_(weight[begin:end, None])
            out.index_add_(0, token, low @ B[first:last])
        return y


class PaddedMix(Mix):
    """Token-level top-k: the segments of all experts in use as one padded batch; for types whose small products are slow."""

    def __init__(self, routing: Routing) -> None:
        pairs = _Pairs(routing)
        self.token = pairs.token
        sizes = [end - begin for _, begin, end in pairs.spans]
        device = pairs.token.device
        self.used = torch.tensor([slot for slot, _, _ in pairs.spans], device=device, dtype=torch.long)
        self.longest = max(sizes, default=0)
        starts = torch.tensor([begin for _, begin, _ in pairs.spans], device=device, dtype=torch.long)
        lengths = torch.tensor(sizes, device=device, dtype=torch.long)
        segment = torch.arange(len(sizes), device=device).repeat_interleave(lengths)
        # Where each pair stands in the padded batch.
        self.position = segment * self.longest + torch.arange(len(segment), device=device) - starts[segment]
        self.weight = pairs.weight.new_zeros(len(sizes) * self.longest).index_copy(0, self.position, pairs.weight)

    def add(self, y: Tensor, x: Tensor, site: SiteFactors) -> Tensor:
        """See Mix."""
        if not len(self.used):
            return y
        flat = x.to(y.dtype).flatten(0, -2)
        num_used, layout = len(self.used), site.layout
        padded = flat.new_zeros(num_used * self.longest, flat.shape[1]).index_copy(0, self.position, flat[self.token])
        rows = layout.rows[self.used]
        real = layout.real[self.used][:, None].to(y.dtype)
        weight = self.weight.view(num_used, self.longest, 1).to(y.dtype) * real
        low = torch.bmm(padded.view(num_used, self.longest, -1), site.A[rows].to(y.dtype).mT) * weight
        out = torch.bmm(low, site.B[rows].to(y.dtype)).flatten(0, 1)[self.position]
        if _records(y, out) or not y.is_contiguous():
            return y + torch.zeros_like(y).flatten(0, -2).index_add(0, self.token, out).view_as(y)
        y.view(-1, y.shape[-1]).index_add_(0, self.token, out)
        return y


class _Pairs:
    """Pairs of a token and an expert with a weight, sorted by expert; spans: (slot, begin, end) of every expert in use."""

    def __init__(self, routing: Routing) -> None:
        chosen = routing.weight.flatten().nonzero()[:, 0]
        slot, order = routing.index.flatten()[chosen].sort(stable=True)
        chosen = chosen[order]
        self.token = chosen // routing.index.shape[2]
        self.weight = routing.weight.flatten()[chosen]
        used, counts = slot.unique_consecutive(return_counts=True)
        ends = counts.cumsum(0)
        self.spans = tuple(zip(used.tolist(), (ends - counts).tolist(), ends.tolist(), strict=True))


def plan(routing: Routing, *, rows: int, dtype: torch.dtype, mixing: Mixing = "after", weightless: bool = False) -> Mix:
    """The cheapest way to compute a routing.

    rows: of all experts at the widest site. dtype: in which the model computes. weightless: it is known that no weight
    differs from zero.
    """
    chosen, num_experts = routing.index.shape[2], routing.num_experts
    if chosen == 0 or weightless:
        return NoMix()
    everything = chosen >= num_experts > 1
    if routing.index.shape[1] == 1:
        # A soft decision over all experts would gather the whole bank for every row.
        return DenseMix(routing, mixing) if everything else SequenceMix(routing, mixing)
    if everything or mixing == "before" or torch.compiler.is_compiling():
        return DenseMix(routing, mixing)
    pairs = routing.index.shape[0] * routing.index.shape[1] * chosen
    if rows <= sparse_above(pairs, chosen, min(num_experts, pairs), dtype):
        return DenseMix(routing, mixing)
    if dtype == torch.float32 or routing.weight.requires_grad:
        return SegmentMix(routing)
    return PaddedMix(routing)


def sparse_above(pairs: int, chosen: int, used: int, dtype: torch.dtype) -> float:
    """Rows of a site above which sorting tokens by expert beats the product over all rows (experiments/benchmarks/engine).

    Sorting pays per pair for gathering and scattering its token, and per expert in use for a product of its own.
    """
    tokens = pairs / chosen
    per_pair, per_expert = (50, 1000) if dtype == torch.float32 else (150, 1000)
    return per_pair * chosen + per_expert * used / tokens


def _records(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _rows_of(layout: Layout, slot: int) -> tuple[int, int]:
    return layout.starts[slot], layout.starts[slot] + layout.room[slot]


def _weighed(low: Tensor, weight: Tensor, place: Tensor, mixing: Mixing, layout: Layout) -> Tensor:
    if mixing == "after":
        return low * weight if _records(low, weight) else low.mul_(weight)
    # Equal ranks of different experts meet: sum_e w_e A_e x, then each expert's B reads the sum.
    low = low * weight
    place = place.expand(low.shape)
    together = low.new_zeros(*low.shape[:-1], layout.widest).scatter_add(-1, place, low)
    return together.gather(-1, place) * weight


def _add_product(y: Tensor, low: Tensor, B: Tensor) -> Tensor:
    if y.is_contiguous() and not _records(y, low):
        y.view(-1, y.shape[-1]).addmm_(low.flatten(0, -2), B)
        return y
    return y + low @ B
