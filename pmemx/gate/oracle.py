"""The upper bound of routing: the true expert, read from the label."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from pmemx.core.gate import ContextGate


class OracleGate(ContextGate):
    """All score on the true choice; a row without a label (None, or -1), or whose expert is away, goes to no expert."""

    def forward(
        self,
        hidden: Float[Tensor, "batch token width"],
        prompt: Bool[Tensor, "batch token"],
        domain: Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch 1 choice"]:
        """0 on the true choice, far below it "no expert", far below that the others: one-hot under any selection."""
        choice = torch.zeros(hidden.shape[0], dtype=torch.long, device=hidden.device) if domain is None else domain
        hot = F.one_hot(choice.clamp_min(0), self.shape.num_choices)[:, None].float()
        scores = (hot - 1) * 1e6
        scores[..., 0] *= 1e-3
        return scores
