"""MixLoRA: sparse experts on the feed-forward block, one plain LoRA on the attention (arXiv:2404.15159)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pmemx.core.block import LoraFactors
from pmemx.core.structure import Born, LinearSites, Structure, check_sizes, drawn, newborn


@dataclass(frozen=True, kw_only=True)
class MixLora(Structure):
    """Experts at `routed` sites; at `plain` ones the first expert alone, which a router over those present gives weight 1.

    Two departures, since experts are mixed layer by layer here. In the paper an expert is a whole feed-forward block whose
    output is weighed behind its non-linearity; here the updates of gate, up and down are weighed where they arise, so that
    the non-linearity sees the mixed hidden state. And in the paper one router serves a block; here every site has its own.
    """

    num_experts: int = 8
    rank: int = 16
    alpha: float = 32.0
    routed: Sequence[str] = ("gate_proj", "up_proj", "down_proj")
    plain: Sequence[str] = ("q_proj", "k_proj", "v_proj", "o_proj")

    def __post_init__(self) -> None:
        check_sizes(rank=self.rank, alpha=self.alpha, num_experts=[self.num_experts])

    def experts(self, sites: LinearSites, generator: torch.Generator) -> Born:
        """See Structure."""
        routed, plain = set(sites.called(self.routed)), set(sites.called(self.plain))

        def born(names: set[str]) -> dict[str, LoraFactors]:
            return {
                name: newborn(drawn(self.rank, width_in, generator), width_out, self.alpha)
                for name, (width_in, width_out) in sites.widths.items()
                if name in names
            }

        return born(routed | plain), *(born(routed) for _ in range(self.num_experts - 1))
