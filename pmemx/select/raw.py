"""Raw weights: the scores themselves, for gates whose weights are no shares (arXiv:2402.11455, 2402.00433)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pmemx.core.gate import NEVER
from pmemx.core.routing import Routing, Select


@dataclass(frozen=True, kw_only=True)
class Raw(Select):
    """Every expert with its score as its weight, which may be negative or above 1; choice 0 has none.

    An expert that is never taken (gate.NEVER or less, -inf among it) has weight 0.
    """

    gives_shares: ClassVar[bool] = False

    def __call__(self, scores: Float[Tensor, "batch token choice"]) -> Routing:
        """All experts, with gradients to the scores of those that may be taken."""
        weight = scores[..., 1:].float()
        return Routing.of_weights(weight.masked_fill(weight <= NEVER, 0.0))
