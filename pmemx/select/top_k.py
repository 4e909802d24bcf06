"""Sparse routing: the k best choices, where "no expert" competes like any other (arXiv:1701.06538)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pmemx.core.errors import ConfigError
from pmemx.core.routing import Routing, Select


@dataclass(frozen=True, kw_only=True)
class TopK(Select):
    """The k best choices by softmax share; renormalise makes the k shares sum to 1.

    With k = 1 and renormalise the winner has weight 1, and a win of "no expert" gives the base model back exactly.
    """

    k: int = 1
    temperature: float = 1.0
    renormalise: bool = True

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"k = {self.k} chooses nothing; it must be at least 1")
        if self.temperature <= 0:
            raise ConfigError(f"temperature {self.temperature} is not positive; 1 is the usual value")

    def __call__(self, scores: Float[Tensor, "batch token choice"]) -> Routing:
        """min(k, choices) entries a token; an entry that fell to no expert has weight 0."""
        share = (scores.float() / self.temperature).softmax(dim=-1)
        weight, choice = share.topk(min(self.k, share.shape[-1]), dim=-1)
        if self.renormalise:
            weight = weight / weight.sum(dim=-1, keepdim=True)
        weight = torch.where(choice == 0, weight.new_zeros(()), weight)
        return Routing((choice - 1).clamp_min(0), weight, scores.shape[-1] - 1)
