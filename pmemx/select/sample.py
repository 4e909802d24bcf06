"""Random routing: k choices drawn from their shares without replacement, by Gumbel top-k (arXiv:1903.06059)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pmemx.core.routing import Routing, Select
from pmemx.core.shares import check_k, check_k_fits, check_temperature, routing_of, shares
from pmemx.select.hashed import hashed_uniform


@dataclass(frozen=True, kw_only=True)
class Sample(Select):
    """k different choices, "no expert" among them, each next one drawn by its share of what is left.

    Weights are those of top_k, which is this selection without its noise: train on draws, evaluate with select=top_k.

    A draw is a function of the seed and of the decision's own shares, and of nothing else: no state moves between calls.
    So a decision that is computed again (checkpointed activations, another thread, another place in a batch, a token
    read with a cache) falls as it did, up to shares that rounding carries over the edge of a cell of 1/64 nat. The other
    side: decisions with the same shares fall alike, and a gate that does not look at the text draws once for all of it.
    """

    k: int = 1
    temperature: float = 1.0
    renormalise: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_k(self.k)
        check_temperature(self.temperature)

    def __call__(self, scores: Float[Tensor, "batch token choice"]) -> Routing:
        """k entries a decision, with gradients through their shares. Raises ConfigError if there are fewer than k experts."""
        num_experts = scores.shape[-1] - 1
        check_k_fits(self.k, num_experts)
        share = shares(scores, self.temperature)
        log_share = share.detach().log()
        generator = torch.Generator().manual_seed(self.seed)
        gumbel = -(-hashed_uniform(log_share, generator).log()).log()
        choice = (log_share + gumbel).topk(self.k, dim=-1).indices
        return routing_of(share.gather(-1, choice), choice, num_experts, renormalise=self.renormalise)
