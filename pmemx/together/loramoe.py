"""LoRAMoE: dense experts at every feed-forward layer, all weighed by a softmax (arXiv:2312.09979)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pmemx.core.structure import Born, LinearSites, Structure, check_sizes, drawn, newborn


@dataclass(frozen=True, kw_only=True)
class LoraMoe(Structure):
    """As many experts at every one of the sites.

    Their localised balance, which keeps half of the experts for rows that ask for knowledge, is a loss: see TogetherModule.
    """

    num_experts: int = 8
    rank: int = 4
    alpha: float = 32.0
    targets: Sequence[str] = ("gate_proj", "up_proj", "down_proj")

    def __post_init__(self) -> None:
        check_sizes(rank=self.rank, alpha=self.alpha, num_experts=[self.num_experts])

    def experts(self, sites: LinearSites, generator: torch.Generator) -> Born:
        """See Structure."""
        widths = {name: sites.widths[name] for name in sites.called(self.targets)}
        return tuple(
            {
                name: newborn(drawn(self.rank, w_in, generator), w_out, self.alpha)
                for name, (w_in, w_out) in widths.items()
            }
            for _ in range(self.num_experts)
        )
