"""X-LoRA: a classifier on the base model's last hidden state weighs the experts (arXiv:2402.07148)."""

from itertools import pairwise

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.core.errors import ConfigError
from pmemx.core.gate import NEVER, ContextGate
from pmemx.core.vote import Granularity


class XLoraGate(ContextGate):
    """A multi-layer perceptron of `depth` linear layers, `size` wide inside, as PEFT 0.21 builds it.

    layerwise: one set of scores for every site, in the order of the bank's sites, instead of one for all. abstain: the
    score of "no expert"; None, as published, never takes it. layer: whose hidden states are read; the published -1 costs
    a pass of the base, 0 (the embedding) none. size and dropout play no part when depth is 1.
    """

    def __init__(
        self,
        shape: BankShape,
        *,
        granularity: Granularity = "token",
        layerwise: bool = False,
        layer: int = -1,
        depth: int = 1,
        size: int = 2048,
        dropout: float = 0.2,
        abstain: float | None = None,
    ) -> None:
        super().__init__(shape, granularity=granularity)
        for name, value in (("depth", depth), ("size", size)):
            if value < 1:
                raise ConfigError(f"gate.{name} = {value} must be at least 1")
        self.layer, self.layerwise = layer, layerwise
        self.abstain = NEVER if abstain is None else abstain
        num_experts = len(shape.experts)
        out = num_experts * len(shape.sites) if layerwise else num_experts
        self.layers = nn.Sequential()
        for width_in, width_out in pairwise([shape.width, *[size] * (depth - 1)]):
            self.layers.extend([nn.Linear(width_in, width_out), nn.ReLU()])
            if dropout > 0:
                self.layers.append(nn.Dropout(dropout))
        self.layers.append(nn.Linear(size if depth > 1 else shape.width, out))

    def read(self, hidden: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token feature"]:
        """The hidden states themselves: a vote is taken on them, before the classifier."""
        return hidden.float()

    def score(
        self, pooled: Float[Tensor, "batch token feature"], domain: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch token choice"] | Float[Tensor, "batch token site choice"]:
        """The classifier's logits, and the constant of "no expert" before them."""
        scores = self.layers(pooled)
        if self.layerwise:
            scores = scores.unflatten(-1, (len(self.shape.sites), len(self.shape.experts)))
        return F.pad(scores, (1, 0), value=self.abstain)
