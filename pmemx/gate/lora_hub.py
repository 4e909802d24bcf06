"""LoraHub: one weight an expert for everything, found on a few examples without gradients (arXiv:2307.13269)."""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pmemx.core.bank import BankShape
from pmemx.core.gate import SearchedGate
from pmemx.core.vote import Granularity


class LoraHubGate(SearchedGate):
    """Scores that are weights: any text gets sum_e w_e of the experts, whatever it says.

    Weights may be negative and sum to anything, so the selection is `raw`; the paper mixes "before". They begin at 0, the
    base model, and an expert that joins later begins there as well. The search is stage.gate_search.
    """

    choice_rows: ClassVar[tuple[str, ...] | None] = ("weights",)

    def __init__(self, shape: BankShape, *, granularity: Granularity = "prompt") -> None:
        super().__init__(shape, granularity=granularity)
        self.register_buffer("weights", torch.zeros(shape.num_choices))

    def numbers(self) -> Float[Tensor, " number"]:
        """The weights of the experts; "no expert", whose score means nothing here, stays at 0."""
        return self.get_buffer("weights")[1:]

    def read(self, hidden: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token feature"]:
        """Nothing: all rows are treated alike."""
        return hidden[..., :0]

    def score(
        self, pooled: Float[Tensor, "batch token feature"], domain: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch token choice"]:
        """The weights, for every decision."""
        return self.get_buffer("weights").expand(*pooled.shape[:2], -1)
