"""Soft routing: every expert with its softmax share."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pmemx.core.errors import ConfigError
from pmemx.core.routing import Routing, Select


@dataclass(frozen=True, kw_only=True)
class Softmax(Select):
    """softmax(scores / temperature); the share of choice 0 goes to no expert."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ConfigError(f"temperature {self.temperature} is not positive; for a hard choice use select=top_k")

    def __call__(self, scores: Float[Tensor, "batch token choice"]) -> Routing:
        """All experts, with gradients to all scores."""
        return Routing.of_weights((scores.float() / self.temperature).softmax(dim=-1)[..., 1:])
