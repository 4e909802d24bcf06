"""Routing: which experts, with which weights, and the selection that makes one out of scores."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pmemx.core.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Routing:
    """The experts of every token and their weights.

    token is 1 when one decision holds for the whole sequence. Where a selection gives shares, weights are not negative and
    sum to at most 1; what is missing to 1 is the share of "no expert". An entry of weight 0 costs nothing but its place.
    heads: where the pieces of a site are weighed one by one (core.gate.HeadedGate), the weights of all experts by piece;
    `index` then names all experts in order, and `weight` is the mean over the pieces.
    """

    index: Int[Tensor, "batch token chosen"]
    weight: Float[Tensor, "batch token chosen"]
    num_experts: int
    heads: Float[Tensor, "batch token expert head"] | None = None

    def dense(self) -> Float[Tensor, "batch token expert"]:
        """Weights by expert, zero where an expert is not chosen."""
        batch, token, _ = self.index.shape
        return self.weight.new_zeros(batch, token, self.num_experts).scatter_add(2, self.index, self.weight)

    @staticmethod
    def of_weights(weight: Float[Tensor, "batch token expert"]) -> "Routing":
        """Every expert chosen, with the given weights."""
        index = torch.arange(weight.shape[2], device=weight.device).expand(weight.shape)
        return Routing(index, weight, weight.shape[2])

    @staticmethod
    def of_heads(routings: Sequence["Routing"]) -> "Routing":
        """One routing of what every head chose by itself."""
        heads = torch.stack([routing.dense() for routing in routings], dim=-1)
        return replace(Routing.of_weights(heads.mean(dim=-1)), heads=heads)

    def rows(self, index: Int[Tensor, " row"]) -> "Routing":
        """The routing of rows that were reordered, repeated or selected."""
        heads = None if self.heads is None else self.heads[index]
        return Routing(self.index[index], self.weight[index], self.num_experts, heads)

    def detached(self) -> "Routing":
        """The same routing without its gradient."""
        heads = None if self.heads is None else self.heads.detach()
        return Routing(self.index, self.weight.detach(), self.num_experts, heads)

    def equals(self, other: "Routing") -> bool:
        """Whether every number is the same."""
        pairs = [(self.index, other.index), (self.weight, other.weight)]
        if self.heads is not None and other.heads is not None:
            pairs.append((self.heads, other.heads))
        return (self.heads is None) == (other.heads is None) and all(torch.equal(*pair) for pair in pairs)


class Select(ABC):
    """Scores to routing: the one place for temperature, top-k and normalisation. A frozen dataclass."""

    gives_shares: ClassVar[bool] = True
    """Whether weights are shares of 1, and so unmoved by a constant added to all scores."""
    independent: ClassVar[bool] = True
    """Whether a decision falls as it would alone; where not, the selection is for training, and another one serves."""

    @abstractmethod
    def __call__(self, scores: Float[Tensor, "batch token choice"]) -> Routing:
        """Choose among no expert (choice 0) and the experts (choice e + 1). A choice of score -inf has no weight."""

    def biased(self, scores: Float[Tensor, "batch token choice"], bias: Float[Tensor, " choice"]) -> Routing:
        """Choose by scores + bias, weigh by the scores alone (arXiv:2408.15664). Raises ConfigError where that means nothing."""
        raise ConfigError(
            f"{type(self).__name__} cannot choose by one score and weigh by another; a gate with a load bias needs select=top_k"
        )


@dataclass(frozen=True, eq=False)
class Observation:
    """What happened at one site in one pass.

    scores is None for fixed weights. prompt marks the tokens that a decision may look at, attended those that are not
    padding; domain is the true choice of each row, -1 where it is not known, None where nobody said.
    """

    site: str
    scores: Float[Tensor, "batch decision choice"] | None
    routing: Routing
    attended: Bool[Tensor, "batch token"]
    prompt: Bool[Tensor, "batch token"]
    domain: Int[Tensor, " batch"] | None


Observer = Callable[[Observation], None]
