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
from pmemx.core.product import DenseProduct, GatheredProduct, SegmentedProduct, rows_of, segments_down, segments_up
from pmemx.core.routing import Routing

Mixing = Literal["after", "before"]
"""after: the weighted sum of the experts' outputs. before: one expert of weighted factors, (sum w B)(sum w A), whose
cross terms B_f A_e make it another function (arXiv:2306.03745)."""


class Mix(ABC):
    """A routing, made ready for the sites that share it.

    What needs a gradient is not kept from one site for the next: a checkpointed layer, which is computed again by itself,
    must save the same tensors both times. Factors that are trained (core.trainable) take the plain products, of which
    autograd keeps what it needs: those of core.product give frozen factors no gradient.
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
        self.weight = routing.dense()
        self.mixing: Mixing = mixing

    def add(self, y: Tensor, x: Tensor, site: SiteFactors) -> Tensor:
        """See Mix."""
        x, A, B, weight = x.to(y.dtype), site.A.to(y.dtype), site.B.to(y.dtype), self.weight.to(y.dtype)
        if self.mixing == "before":
            by_row = weight.index_select(2, site.layout.owner)
            return _add_product(y, _met(x @ A.T, by_row, site.layout.place, site.layout.widest), B)
        if _records(A, B):
            return y + site.layout.weigh(x @ A.T, weight) @ B
        if _records(x, weight):
            weight = weight.expand(x.shape[0], -1, -1)
            return y + DenseProduct.apply(x, weight, A, B, site.layout)  # pyright: ignore[reportOperatorIssue]
        low = x @ A.T
        site.layout.weigh_(low, weight)
        return _add_product(y, low, B)


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
            low = x @ rows_of(site.A, index).to(y.dtype).mT
            place = site.layout.place[index][:, None]
            low = _met(low, weight.to(y.dtype)[:, None], place, site.layout.widest)
            return y + low @ rows_of(site.B, index).to(y.dtype)
        if _records(site.A, site.B):
            low = x @ rows_of(site.A, index).to(y.dtype).mT
            return y + (low * weight.to(y.dtype)[:, None]) @ rows_of(site.B, index).to(y.dtype)
        if _records(x, weight):
            A, B, rows = site.A.to(y.dtype), site.B.to(y.dtype), x.shape[0]
            weight, index = weight.to(y.dtype).expand(rows, -1), index.expand(rows, -1)
            return y + GatheredProduct.apply(x, weight, A, B, index)  # pyright: ignore[reportOperatorIssue]
        key = site.number, y.dtype
        if key not in self._gathered:
            # The weight goes into B here, which saves a pass over the tokens of every site.
            B = rows_of(site.B, index).mul_(weight[..., None])
            self._gathered[key] = (rows_of(site.A, index).to(y.dtype), B.to(y.dtype))
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


class HeadedMix(Mix):
    """Weights by head: what a site reads and what it puts out fall into equal pieces, weighed one by one (arXiv:2211.03831).

    before: (sum w B)(sum w A), where the columns of A and the rows of B in a piece have the weights of its head. after: the
    sum of the experts' outputs, whose pieces have the weights of their heads; what is read is not weighed.
    """

    def __init__(self, heads: Float[Tensor, "batch token expert head"], mixing: Mixing) -> None:
        self.heads = heads
        self.mixing: Mixing = mixing

    def add(self, y: Tensor, x: Tensor, site: SiteFactors) -> Tensor:
        """See Mix."""
        x, A, B, layout = x.to(y.dtype), site.A.to(y.dtype), site.B.to(y.dtype), site.layout
        weights = self.heads.to(y.dtype).index_select(2, layout.owner).unbind(dim=3)
        num_heads = len(weights)
        if self.mixing == "before":
            pieces = zip(x.chunk(num_heads, dim=-1), A.chunk(num_heads, dim=1), weights, strict=True)
            low = sum((x @ A.T * weight for x, A, weight in pieces), x.new_zeros(()))
            low = _meet(low, layout.place, layout.widest)
        else:
            low = x @ A.T
        pieces = zip(B.chunk(num_heads, dim=1), weights, strict=True)
        update = torch.cat([(low * weight) @ B for B, weight in pieces], dim=-1)
        return y + update if _records(y, update) or not y.is_contiguous() else y.add_(update)


class SegmentMix(Mix):
    """Token-level top-k: tokens are sorted by expert once, and every expert in use reads its segment."""

    def __init__(self, routing: Routing) -> None:
        self.pairs = _Pairs(routing)

    def add(self, y: Tensor, x: Tensor, site: SiteFactors) -> Tensor:
        """See Mix."""
        pairs = self.pairs
        if not pairs.slots:
            return y
        flat, weight = x.to(y.dtype).flatten(0, -2), pairs.weight.to(y.dtype)
        factors = tuple((A.to(y.dtype), B.to(y.dtype)) for A, B in map(site.expert, pairs.slots))
        if _records(site.A, site.B):
            read = zip(flat.index_select(0, pairs.token).split(pairs.sizes), weight.split(pairs.sizes), strict=True)
            said = [(x @ A.T * w[:, None]) @ B for (x, w), (A, B) in zip(read, factors, strict=True)]
            return y + torch.zeros_like(y).flatten(0, -2).index_add(0, pairs.token, torch.cat(said)).view_as(y)
        if _records(x, weight, y) or not y.is_contiguous():
            update = SegmentedProduct.apply(flat, weight, pairs.token, pairs.sizes, factors)
            return y + update.view_as(y)  # pyright: ignore[reportOptionalMemberAccess]
        A, B = zip(*factors, strict=True)
        # Gathered and scattered once for all experts.
        low = segments_down(flat.index_select(0, pairs.token), A, pairs.sizes).mul_(weight[:, None])
        y.view(-1, y.shape[-1]).index_add_(0, pairs.token, segments_up(low, B, pairs.sizes))
        return y


class PaddedMix(Mix):
    """Token-level top-k: the segments of all experts in use as one padded batch, in two products however many there are."""

    def __init__(self, routing: Routing) -> None:
        pairs = self.pairs = _Pairs(routing)
        device = pairs.token.device
        self.used = torch.tensor(pairs.slots, device=device, dtype=torch.long)
        self.longest = max(pairs.sizes, default=0)
        sizes = torch.tensor(pairs.sizes, device=device, dtype=torch.long)
        segment = torch.arange(len(sizes), device=device).repeat_interleave(sizes)
        # Where each pair stands in the padded batch.
        self.position = (
            segment * self.longest + torch.arange(len(segment), device=device) - (sizes.cumsum(0) - sizes)[segment]
        )
        self.weight = pairs.weight.new_zeros(len(sizes) * self.longest).index_copy(0, self.position, pairs.weight)

    def add(self, y: Tensor, x: Tensor, site: SiteFactors) -> Tensor:
        """See Mix."""
        if not len(self.used):
            return y
        flat = x.to(y.dtype).flatten(0, -2)
        num_used, layout = len(self.used), site.layout
        padded = flat.new_zeros(num_used * self.longest, flat.shape[1]).index_copy(
            0, self.position, flat.index_select(0, self.pairs.token)
        )
        rows = layout.rows[self.used]
        real = layout.real[self.used][:, None].to(y.dtype)
        weight = self.weight.view(num_used, self.longest, 1).to(y.dtype) * real
        low = torch.bmm(padded.view(num_used, self.longest, -1), rows_of(site.A, rows).to(y.dtype).mT) * weight
        out = torch.bmm(low, rows_of(site.B, rows).to(y.dtype)).flatten(0, 1).index_select(0, self.position)
        if _records(y, out) or not y.is_contiguous():
            return y + torch.zeros_like(y).flatten(0, -2).index_add(0, self.pairs.token, out).view_as(y)
        y.view(-1, y.shape[-1]).index_add_(0, self.pairs.token, out)
        return y


class _Pairs:
    """Pairs of a token and an expert with a weight, sorted by expert. slots, sizes: of every expert in use."""

    def __init__(self, routing: Routing) -> None:
        weight, index = routing.weight.flatten(), routing.index.flatten()
        chosen = weight.nonzero()[:, 0]
        slot, order = index.index_select(0, chosen).sort(stable=True)
        chosen = chosen.index_select(0, order)
        self.token = chosen // routing.index.shape[2]
        self.weight = weight.index_select(0, chosen)
        counts = enumerate(slot.bincount(minlength=routing.num_experts).tolist())
        used = [(slot, size) for slot, size in counts if size]
        self.slots, self.sizes = tuple(slot for slot, _ in used), tuple(size for _, size in used)


def plan(routing: Routing, *, rows: int, dtype: torch.dtype, mixing: Mixing = "after", weightless: bool = False) -> Mix:
    """The cheapest way to compute a routing.

    rows: of all experts at the widest site. dtype: in which the model computes. weightless: it is known that no weight
    differs from zero.
    """
    chosen, num_experts = routing.index.shape[2], routing.num_experts
    if chosen == 0 or weightless:
        return NoMix()
    if routing.heads is not None:
        return HeadedMix(routing.heads, mixing)
    # A free slot is never chosen, so that a soft decision over all experts may take fewer than all slots.
    most = 2 * chosen > num_experts > 1
    if routing.index.shape[1] == 1:
        # A decision for most slots would gather nearly the whole bank for every row.
        return DenseMix(routing, mixing) if most else SequenceMix(routing, mixing)
    if most or mixing == "before" or torch.compiler.is_compiling():
        return DenseMix(routing, mixing)
    tokens, device = routing.index.shape[0] * routing.index.shape[1], routing.index.device
    if rows <= sparse_above(tokens, chosen, min(num_experts, tokens * chosen), dtype, device):
        return DenseMix(routing, mixing)
    # Launching a product for every expert costs a processor little and an accelerator much.
    return SegmentMix(routing) if device.type == "cpu" or routing.weight.requires_grad else PaddedMix(routing)


def sparse_above(tokens: int, chosen: int, used: int, dtype: torch.dtype, device: torch.device) -> float:
    """Rows of a site above which sorting tokens by expert beats the product over all rows.

    Sorting pays per chosen expert for gathering and scattering the token, and per expert in use for products of its own;
    both are told in rows of the dense product, which half precision makes dearer (experiments/benchmarks/engine, on a
    processor). An accelerator multiplies some 1,000 rows in the time of a launch; that figure was not measured.
    """
    if device.type != "cpu":
        return 1024
    if dtype in (torch.float32, torch.float64):
        return 40 * chosen + (400 * used + 2000) / (tokens + 8)
    return 10 * chosen + 100 * used / tokens


def _records(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _met(low: Tensor, weight: Tensor, place: Tensor, widest: int) -> Tensor:
    return _meet(low * weight, place, widest) * weight


def _meet(low: Tensor, place: Tensor, widest: int) -> Tensor:
    # Equal ranks of different experts meet: sum_e w_e A_e x, then each expert's B reads the sum.
    place = place.expand(low.shape)
    together = low.new_zeros(*low.shape[:-1], widest).scatter_add(-1, place, low)
    return together.gather(-1, place)


def _add_product(y: Tensor, low: Tensor, B: Tensor) -> Tensor:
    if y.is_contiguous() and not _records(y, low, B):
        y.view(-1, y.shape[-1]).addmm_(low.flatten(0, -2), B)
        return y
    return y + low @ B
