"""Routing: which experts, with which weights, and the selection that makes one out of scores."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Routing:
    """The experts of every token and their weights.

    token is 1 when one decision holds for the whole sequence. Weights are not negative and sum to at most 1 in a
    selection; what is missing to 1 is the share of "no expert". An entry of weight 0 costs nothing but its place.
    """

    index: Int[Tensor, "batch token chosen"]
    weight: Float[Tensor, "batch token chosen"]
    num_experts: int

    def dense(self) -> Float[Tensor, "batch token expert"]:
        """Weights by expert, zero where an expert is not chosen."""
        batch, token, _ = self.index.shape
        return self.weight.new_zeros(batch, token, self.num_experts).scatter_add(2, self.index, self.weight)

    @staticmethod
    def of_weights(weight: Float[Tensor, "batch token expert"]) -> "Routing":
        """Every expert chosen, with the given weights."""
        index = torch.arange(weight.shape[2], device=weight.device).expand(weight.shape)
        return Routing(index, weight, weight.shape[2])


class Select(ABC):
    """Scores to routing: the one place for temperature, top-k and normalisation. A frozen dataclass."""

    @abstractmethod
    def __call__(self, scores: Float[Tensor, "batch token choice"]) -> Routing:
        """Choose among no expert (choice 0) and the experts (choice e + 1). A choice of score -inf has no weight."""


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
