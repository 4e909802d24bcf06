"""Soft routing: every expert with its softmax share."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pmemx.core.routing import Routing, Select
from pmemx.core.shares import check_temperature, shares


@dataclass(frozen=True, kw_only=True)
class Softmax(Select):
    """softmax(scores / temperature); the share of choice 0 goes to no expert."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    def __call__(self, scores: Float[Tensor, "batch token choice"]) -> Routing:
        """All experts, with gradients to all scores."""
        return Routing.of_weights(shares(scores, self.temperature)[..., 1:])
