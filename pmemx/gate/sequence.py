"""A gate that reads phrases: a convolution over tokens, the strongest response of each filter, a linear decision."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.core.errors import ConfigError
from pmemx.core.gate import ContextGate
from pmemx.core.vote import Granularity, Max, Pool


class SequenceGate(ContextGate):
    """scores = W max_t relu(F [h_{t-w+1}; ...; h_t]) + b, the text CNN of arXiv:1408.5882 over the prompt.

    Taking the maximum asks "does this phrase occur?", so a decision can hang on one name and ignore how the question is
    put, while the linear layer can weigh phrases against each other. layer 0 reads embeddings: the cheapest features, and
    those that transfer best to unseen phrasings. window joins neighbouring tokens, so that a name of several tokens is
    one feature.
    """

    pool: Pool = Max()

    def __init__(
        self,
        shape: BankShape,
        *,
        layer: int = 0,
        window: int = 2,
        filters: int = 256,
        dropout: float = 0.0,
        abstain_bias: float = 1.0,
        granularity: Granularity = "prompt",
    ) -> None:
        super().__init__(shape, granularity=granularity)
        for name, value in (("window", window), ("filters", filters)):
            if value < 1:
                raise ConfigError(f"gate.{name} = {value} must be at least 1")
        self.layer, self.window, self.reach = layer, window, window - 1
        self.phrase = nn.Linear(window * shape.width, filters)
        self.dropout = nn.Dropout(dropout)
        self.choice = nn.Linear(filters, shape.num_choices)
        nn.init.zeros_(self.choice.weight)
        nn.init.zeros_(self.choice.bias)
        self.choice.bias.data[0] = abstain_bias

    def read(self, hidden: Float[Tensor, "batch seen width"]) -> Float[Tensor, "batch token feature"]:
        """relu(F phrase) of the unit-RMS states."""
        hidden = hidden.float()
        unit = hidden * torch.rsqrt(hidden.square().mean(dim=-1, keepdim=True) + 1e-6)
        return F.relu(self.phrase(unit.unfold(1, self.window, 1).flatten(-2)))

    def score(
        self, pooled: Float[Tensor, "batch token feature"], domain: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch token choice"]:
        """A row without a prompt has no features, and so the scores b."""
        return self.choice(self.dropout(pooled))
