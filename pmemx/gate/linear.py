"""A linear gate at every site: softmax(W_l x), as in mixtures of LoRA experts (arXiv:2402.07148, 2405.13053)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pmemx.core.bank import BankShape
from pmemx.core.gate import Granularity, SiteGate


class LinearGate(SiteGate):
    """One matrix per site on the unit-RMS input, so that sites of different scale share a learning rate.

    abstain_bias is the initial advantage of "no expert": before training the base answers.
    """

    def __init__(self, shape: BankShape, *, granularity: Granularity = "prompt", abstain_bias: float = 2.0) -> None:
        super().__init__(shape, granularity=granularity)
        self._index = {site: str(i) for i, site in enumerate(shape.sites)}
        self.scores = nn.ModuleDict()
        for site, width in shape.sites.items():
            layer = nn.Linear(width, shape.num_choices)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            layer.bias.data[0] = abstain_bias
            self.scores[self._index[site]] = layer

    def forward(self, site: str, x: Float[Tensor, "batch token width_in"]) -> Float[Tensor, "batch token choice"]:
        """W (x / rms(x)) + b."""
        x = x.float()
        return self.scores[self._index[site]](x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6))
