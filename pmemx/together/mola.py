"""MoLA: more experts in higher layers (arXiv:2402.08562)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pmemx.core.gate import layer_of
from pmemx.core.structure import Born, LinearSites, Structure, check_sizes, drawn, newborn


@dataclass(frozen=True, kw_only=True)
class Mola(Structure):
    """num_experts: of each equal part of the layers, lowest first; 2-4-6-8 is what the authors' script trains.

    A layer belongs to the part in which its middle lies, the upper one at a border, so that a base of fewer layers than
    parts has experts of the lowest and of the highest. An expert with a high number skips the lower layers.
    """

    num_experts: Sequence[int] = (2, 4, 6, 8)
    rank: int = 8
    alpha: float = 16.0
    targets: str | Sequence[str] = "all-linear"

    def __post_init__(self) -> None:
        check_sizes(rank=self.rank, alpha=self.alpha, num_experts=self.num_experts)

    def experts(self, sites: LinearSites, generator: torch.Generator) -> Born:
        """See Structure."""
        parts, layers = len(self.num_experts), sites.layers
        number = {
            layer: self.num_experts[(2 * place + 1) * parts // (2 * len(layers))] for place, layer in enumerate(layers)
        }
        widths = {name: sites.widths[name] for name in sites.called(self.targets)}
        return tuple(
            {
                name: newborn(drawn(self.rank, w_in, generator), w_out, self.alpha)
                for name, (w_in, w_out) in widths.items()
                if expert < number[layer_of(name)]
            }
            for expert in range(max(number.values()))
        )
