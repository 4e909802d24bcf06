"""LoRA-Flow: the weights of the experts at every token and layer, softmax(W h) + b (arXiv:2402.11455)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.core.errors import ConfigError
from pmemx.core.gate import NEVER, Level, SiteGate
from pmemx.core.vote import Granularity
from pmemx.gate.sharing import shared


class LoraFlowGate(SiteGate):
    """Its scores are weights, for select=raw: the bias comes after the softmax, so that they may leave [0, 1].

    h is what the first site of a layer reads; in the released code it is the layer's input before the norm. W and b start
    at zero, which averages the experts; the released code starts b at -0.5 and 0.5 for its pair of a language and a task,
    which says nothing about other banks. "No expert" is not a choice: all weights may go to zero.
    """

    def __init__(self, shape: BankShape, *, granularity: Granularity = "token", level: Level = "layer") -> None:
        super().__init__(shape, granularity=granularity, level=level)
        if level == "model":
            raise ConfigError(
                "gate.level 'model' adds up what all sites say, but these are weights; use 'layer' or 'site'"
            )
        self._number, widths = shared(shape, level)
        num_experts = len(shape.experts)
        self.matrices = nn.ParameterList(torch.zeros(num_experts, width) for width in widths)
        self.biases = nn.ParameterList(torch.zeros(num_experts) for _ in widths)

    def forward(self, site: str, x: Float[Tensor, "batch token width_in"]) -> Float[Tensor, "batch token choice"]:
        """softmax(W x) + b over the experts."""
        matrix, bias = self.matrices[self._number[site]], self.biases[self._number[site]]
        weight = F.softmax(x.to(matrix.dtype) @ matrix.T, dim=-1) + bias
        return F.pad(weight, (1, 0), value=NEVER)
