"""A gate that reads the prompt once, token by token, and lets the strongest evidence decide for the whole sequence."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.core.gate import ContextGate


class SequenceGate(ContextGate):
    """Score(e) = pool over prompt tokens of MLP([h_{t-w+1}; ...; h_t])_e, against a learned score of "no expert".

    Pooling over the prompt only keeps the gate causal; pooling over the whole sequence would leak the future. The
    maximum asks "is there a phrase that this expert knows?", which abstains on unknown prompts; the mean asks "what is
    the prompt like on average?". layer 0 reads embeddings: the cheapest features, and those that transfer best to
    unseen phrasings. window joins neighbouring tokens, so that a name of several tokens is one feature.
    """

    def __init__(
        self,
        shape: BankShape,
        *,
        layer: int = 0,
        window: int = 2,
        hidden_width: int = 128,
        pool: Literal["max", "mean"] = "max",
        abstain_bias: float = 2.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(shape)
        for name, value in (("window", window), ("hidden_width", hidden_width)):
            if value < 1:
                raise ValueError(f"{name} = {value} must be at least 1")
        if pool not in ("max", "mean"):
            raise ValueError(f"pool {pool!r} is not one of max, mean")
        self.layer, self.window, self.pool = layer, window, pool
        self.read = nn.Linear(window * shape.width, hidden_width)
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Linear(hidden_width, len(shape.experts))
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)
        self.abstain = nn.Parameter(torch.tensor(abstain_bias))

    def forward(
        self,
        hidden: Float[Tensor, "batch token width"],
        prompt: Bool[Tensor, "batch token"],
        domain: Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch 1 choice"]:
        """A row without a prompt goes to no expert."""
        unit = hidden.float() * torch.rsqrt(hidden.float().square().mean(dim=-1, keepdim=True) + 1e-6)
        unit = unit * prompt[..., None]
        padded = F.pad(unit, (0, 0, self.window - 1, 0))
        phrases = padded.unfold(1, self.window, 1).flatten(-2)
        evidence = self.score(self.dropout(F.gelu(self.read(phrases))))
        if self.pool == "max":
            pooled = evidence.masked_fill(~prompt[..., None], -1e4).amax(dim=1)
        else:
            pooled = (evidence * prompt[..., None]).sum(dim=1) / prompt.sum(dim=1, keepdim=True).clamp_min(1)
            pooled = pooled.masked_fill(~prompt.any(dim=1, keepdim=True), -1e4)
        return torch.cat([self.abstain.expand(len(pooled), 1), pooled], dim=1)[:, None]
