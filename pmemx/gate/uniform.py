"""The baseline that does not choose: every expert, always."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pmemx.core.bank import BankShape
from pmemx.core.errors import ConfigError
from pmemx.core.gate import NEVER, ContextGate
from pmemx.core.vote import Granularity


class UniformGate(ContextGate):
    """Equal scores for all experts.

    abstain is the share of "no expert" under a plain softmax: 0 gives the average of the experts.
    """

    def __init__(self, shape: BankShape, *, abstain: float = 0.0, granularity: Granularity = "prompt") -> None:
        super().__init__(shape, granularity=granularity)
        if not 0 <= abstain < 1:
            raise ConfigError(f"gate.abstain = {abstain} is not a share in [0, 1)")
        num_experts = len(shape.experts)
        scores = torch.zeros(shape.num_choices)
        scores[0] = math.log(num_experts * abstain / (1 - abstain)) if abstain else NEVER
        self.register_buffer("scores", scores)

    def read(self, hidden: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token feature"]:
        """Nothing: all rows are treated alike."""
        return hidden[..., :0]

    def score(
        self, pooled: Float[Tensor, "batch token feature"], domain: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch token choice"]:
        """The same scores for every decision."""
        return self.get_buffer("scores").expand(*pooled.shape[:2], -1)
