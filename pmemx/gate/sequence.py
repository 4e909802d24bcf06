"""A gate that reads the prompt once: a convolution over tokens, the strongest response of each filter, a linear decision."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.core.errors import ConfigError
from pmemx.core.gate import ContextGate


class SequenceGate(ContextGate):
    """scores = W max_t relu(F [h_{t-w+1}; ...; h_t]) + b, the text CNN of arXiv:1408.5882 over the prompt.

    Pooling over the prompt only keeps the gate causal; pooling over the whole sequence would leak the future. Taking the
    maximum asks "does this phrase occur?", so a decision can hang on one name and ignore how the question is put, while the
    linear layer can weigh phrases against each other. layer 0 reads embeddings: the cheapest features, and those that
    transfer best to unseen phrasings. window joins neighbouring tokens, so that a name of several tokens is one feature.
    """

    def __init__(
        self,
        shape: BankShape,
        *,
        layer: int = 0,
        window: int = 2,
        filters: int = 256,
        dropout: float = 0.0,
        abstain_bias: float = 1.0,
    ) -> None:
        super().__init__(shape)
        for name, value in (("window", window), ("filters", filters)):
            if value < 1:
                raise ConfigError(f"gate.{name} = {value} must be at least 1")
        self.layer, self.window = layer, window
        self.read = nn.Linear(window * shape.width, filters)
        self.dropout = nn.Dropout(dropout)
        self.decide = nn.Linear(filters, shape.num_choices)
        nn.init.zeros_(self.decide.weight)
        nn.init.zeros_(self.decide.bias)
        self.decide.bias.data[0] = abstain_bias

    def forward(
        self,
        hidden: Float[Tensor, "batch token width"],
        prompt: Bool[Tensor, "batch token"],
        domain: Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch 1 choice"]:
        """A row without a prompt has no features, and so the scores b."""
        hidden = hidden.float()
        unit = hidden * torch.rsqrt(hidden.square().mean(dim=-1, keepdim=True) + 1e-6) * prompt[..., None]
        phrases = F.pad(unit, (0, 0, self.window - 1, 0)).unfold(1, self.window, 1).flatten(-2)
        found = F.relu(self.read(phrases)).masked_fill(~prompt[..., None], 0).amax(dim=1)
        return self.decide(self.dropout(found))[:, None]
