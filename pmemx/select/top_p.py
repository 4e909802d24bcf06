"""Nucleus routing: as many choices as it takes to hold a share of p, few where the gate is sure (arXiv:2403.07652)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pmemx.core.errors import ConfigError
from pmemx.core.routing import Routing, Select
from pmemx.core.shares import check_temperature, routing_of, shares


@dataclass(frozen=True, kw_only=True)
class TopP(Select):
    """The smallest set of best choices, "no expert" among them, whose softmax shares sum to at least p.

    renormalise makes their shares sum to 1; p = 1 keeps every choice.
    """

    p: float = 0.9
    temperature: float = 1.0
    renormalise: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise ConfigError(f"select.p = {self.p} is not a share in (0, 1]; 0.9 is a usual value")
        check_temperature(self.temperature)

    def __call__(self, scores: Float[Tensor, "batch token choice"]) -> Routing:
        """An entry a choice, best first; those outside the set have weight 0."""
        share, choice = shares(scores, self.temperature).sort(dim=-1, descending=True)
        better = share.cumsum(dim=-1) - share
        return routing_of(
            share.masked_fill(better >= self.p, 0.0), choice, scores.shape[-1] - 1, renormalise=self.renormalise
        )
