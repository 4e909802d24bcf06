"""Sparse routing: the k best choices, where "no expert" competes like any other (arXiv:1701.06538)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pmemx.core.routing import Routing, Select
from pmemx.core.shares import check_k, check_k_fits, check_temperature, routing_of, shares


@dataclass(frozen=True, kw_only=True)
class TopK(Select):
    """The k best choices by softmax share.

    renormalise makes the k shares sum to 1, which is a softmax over the k best scores; without it the shares of all
    choices stay, as in X-LoRA (arXiv:2402.07148). With k = 1 and renormalise the winner has weight 1, which passes no
    gradient, and a win of "no expert" gives the base model back exactly.
    """

    k: int = 1
    temperature: float = 1.0
    renormalise: bool = True

    def __post_init__(self) -> None:
        check_k(self.k)
        check_temperature(self.temperature)

    def __call__(self, scores: Float[Tensor, "batch token choice"]) -> Routing:
        """k entries a decision. Raises ConfigError if there are fewer than k experts."""
        share = shares(scores, self.temperature)
        return self._of(share, share)

    def biased(self, scores: Float[Tensor, "batch token choice"], bias: Float[Tensor, " choice"]) -> Routing:
        """See Select."""
        return self._of(shares(scores, self.temperature), scores.detach().float() + bias)

    def _of(self, share: Float[Tensor, "batch token choice"], order: Float[Tensor, "batch token choice"]) -> Routing:
        num_experts = share.shape[-1] - 1
        check_k_fits(self.k, num_experts)
        choice = order.topk(self.k, dim=-1).indices
        return routing_of(share.gather(-1, choice), choice, num_experts, renormalise=self.renormalise)
