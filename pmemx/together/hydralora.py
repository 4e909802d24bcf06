"""HydraLoRA: one A for all experts of a site, a B for each (arXiv:2404.19245)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pmemx.core.structure import Born, LinearSites, Structure, check_sizes, drawn, newborn


@dataclass(frozen=True, kw_only=True)
class HydraLora(Structure):
    """Experts with the same A, which is one parameter; their blocks each hold a copy of it, as blocks stand alone."""

    num_experts: int = 4
    rank: int = 4
    alpha: float = 32.0
    targets: Sequence[str] = ("gate_proj", "up_proj", "down_proj")

    def __post_init__(self) -> None:
        check_sizes(rank=self.rank, alpha=self.alpha, num_experts=[self.num_experts])

    def experts(self, sites: LinearSites, generator: torch.Generator) -> Born:
        """See Structure."""
        widths = {name: sites.widths[name] for name in sites.called(self.targets)}
        shared = {name: drawn(self.rank, width_in, generator) for name, (width_in, _) in widths.items()}
        return tuple(
            {name: newborn(A, widths[name][1], self.alpha) for name, A in shared.items()}
            for _ in range(self.num_experts)
        )
