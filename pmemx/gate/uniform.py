"""The baseline that does not choose: every expert, always."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pmemx.core.bank import BankShape
from pmemx.core.errors import ConfigError
from pmemx.core.gate import ContextGate


class UniformGate(ContextGate):
    """Equal scores for all experts.

    abstain is the share of "no expert" under a plain softmax: 0 gives the average of the experts.
    """

    def __init__(self, shape: BankShape, *, abstain: float = 0.0) -> None:
        super().__init__(shape)
        if not 0 <= abstain < 1:
            raise ConfigError(f"gate.abstain = {abstain} is not a share in [0, 1)")
        num_experts = len(shape.experts)
        scores = torch.zeros(shape.num_choices)
        scores[0] = math.log(num_experts * abstain / (1 - abstain)) if abstain else -1e9
        self.register_buffer("scores", scores)

    def forward(
        self,
        hidden: Float[Tensor, "batch token width"],
        prompt: Bool[Tensor, "batch token"],
        domain: Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch 1 choice"]:
        """The same scores for every row."""
        return self.get_buffer("scores").expand(hidden.shape[0], 1, -1)
