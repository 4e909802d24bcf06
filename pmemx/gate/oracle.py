"""The upper bound of routing: the true expert, read from the label."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pmemx.core.gate import ContextGate


class OracleGate(ContextGate):
    """All score on the true choice; a row without a label (None, or -1), or whose expert is away, goes to no expert."""

    def read(self, hidden: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token feature"]:
        """Nothing: the label decides."""
        return hidden[..., :0]

    def score(
        self, pooled: Float[Tensor, "batch token feature"], domain: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch token choice"]:
        """0 on the true choice, far below it "no expert", far below that the others: one-hot under any selection."""
        batch, token, _ = pooled.shape
        choice = torch.zeros(batch, dtype=torch.long, device=pooled.device) if domain is None else domain
        hot = F.one_hot(choice.clamp_min(0), self.shape.num_choices)[:, None].float()
        scores = (hot - 1) * 1e6
        scores[..., 0] *= 1e-3
        return scores.expand(batch, token, -1)
