"""Expert dropout: before another selection, every expert of a decision is left out at random (SMEAR, arXiv:2306.03745)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pmemx.core.errors import ConfigError
from pmemx.core.gate import NEVER
from pmemx.core.routing import Routing, Select
from pmemx.core.shares import shares
from pmemx.select.hashed import hashed_uniform


@dataclass(frozen=True, kw_only=True)
class ExpertDropout(Select):
    """`select` among the experts that are left: each is dropped with probability `rate`, its score then -inf.

    "No expert" is never dropped, and where all experts that could be chosen would be, none is. A selection by softmax
    gives the shares of the dropped to the others. For training; serve with `select` itself.

    Who is dropped is a function of the seed and of the decision's own shares, as in Sample: checkpointed activations and
    threads drop alike, decisions with the same shares too.
    """

    select: Select
    rate: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ConfigError(f"select.rate = {self.rate} is no probability in [0, 1); 0 drops nobody")
        if not self.select.gives_shares:
            raise ConfigError(
                f"{type(self.select).__name__} weighs experts by their scores, not by shares of 1, so the others could not "
                f"make up for a dropped one; put a selection that gives shares into expert_dropout"
            )

    def __call__(self, scores: Float[Tensor, "batch token choice"]) -> Routing:
        """See Select."""
        return self.select(self._left(scores))

    def biased(self, scores: Float[Tensor, "batch token choice"], bias: Float[Tensor, " choice"]) -> Routing:
        """See Select; a bias brings no dropped expert back."""
        return self.select.biased(self._left(scores), bias)

    def _left(self, scores: Float[Tensor, "batch token choice"]) -> Float[Tensor, "batch token choice"]:
        generator = torch.Generator().manual_seed(self.seed)
        dropped = hashed_uniform(shares(scores.detach()).log(), generator) < self.rate
        dropped[..., 0] = False
        left = (scores[..., 1:] > NEVER / 2) & ~dropped[..., 1:]
        return scores.masked_fill(dropped & left.any(dim=-1, keepdim=True), float("-inf"))
