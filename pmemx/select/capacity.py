"""Top-k with room for so many decisions at every expert: who comes too late gets none (Switch, arXiv:2101.03961)."""

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from pmemx.core.errors import ConfigError
from pmemx.core.routing import Routing, Select
from pmemx.core.shares import check_k, check_k_fits, check_temperature, routing_of, shares


@dataclass(frozen=True, kw_only=True)
class Capacity(Select):
    """The k best choices; an expert takes at most ceil(factor * k * decisions / experts) decisions of a pass.

    Served first are the first choices of all decisions, then the second (GShard, arXiv:2006.16668); among equals the rows
    in their order, and within a row the tokens in theirs. What is over has weight 0, and its other choices gain nothing.
    "No expert" competes for a place among the k and has room for all. What has share 0 anyway takes no room.

    renormalise false, as in Switch: the share itself is the weight, so that with k = 1 too a gradient reaches the scores.

    A decision depends on the others of its pass, in other rows too and, where k is above 1, on later ones; padding counts
    like text: this is for training, where every pass reads whole rows. Serve with select=top_k.
    """

    independent: ClassVar[bool] = False

    k: int = 1
    factor: float = 1.25
    temperature: float = 1.0
    renormalise: bool = False

    def __post_init__(self) -> None:
        check_k(self.k)
        check_temperature(self.temperature)
        if not 0 < self.factor < math.inf:
            raise ConfigError(f"select.factor = {self.factor} leaves no room; it is positive and finite, mostly 1 to 2")

    def __call__(self, scores: Float[Tensor, "batch token choice"]) -> Routing:
        """k entries a decision. Raises ConfigError if there are fewer than k experts."""
        num_experts = scores.shape[-1] - 1
        check_k_fits(self.k, num_experts)
        share = shares(scores, self.temperature)
        choice = share.topk(self.k, dim=-1).indices
        routing = routing_of(share.gather(-1, choice), choice, num_experts, renormalise=self.renormalise)
        over = self._over(routing.index, routing.weight > 0, num_experts)
        return Routing(routing.index, routing.weight.masked_fill(over, 0.0), num_experts)

    def _over(
        self, index: Int[Tensor, "batch token chosen"], taken: Bool[Tensor, "batch token chosen"], num_experts: int
    ) -> Bool[Tensor, "batch token chosen"]:
        batch, tokens, k = index.shape
        # Rounded, as 1.1 * 10 is a little more than 11.
        room = math.ceil(round(self.factor * k * batch * tokens / num_experts, 6))
        queue = index.permute(2, 0, 1).flatten()
        asked = F.one_hot(queue, num_experts) * taken.permute(2, 0, 1).flatten()[:, None]
        place = asked.cumsum(dim=0).gather(1, queue[:, None])
        return (place > room).view(k, batch, tokens).permute(1, 2, 0)
