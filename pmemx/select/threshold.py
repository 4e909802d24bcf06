"""Threshold routing: every choice that is good enough, be it one, several or none."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pmemx.core.errors import ConfigError
from pmemx.core.routing import Routing, Select
from pmemx.core.shares import check_temperature, renormalised, shares


@dataclass(frozen=True, kw_only=True)
class Threshold(Select):
    """The experts whose softmax share is at least `threshold`, with their shares; what is left goes to no expert.

    renormalise divides by the sum of all shares that pass, that of "no expert" among them; where no choice passes there
    is no expert either way.
    """

    threshold: float = 0.2
    temperature: float = 1.0
    renormalise: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise ConfigError(f"select.threshold = {self.threshold} is not a share in [0, 1); 0 keeps every choice")
        check_temperature(self.temperature)

    def __call__(self, scores: Float[Tensor, "batch token choice"]) -> Routing:
        """An entry an expert; those below the threshold have weight 0."""
        share = shares(scores, self.temperature)
        kept = share.masked_fill(share < self.threshold, 0.0)
        return Routing.of_weights((renormalised(kept) if self.renormalise else kept)[..., 1:])
