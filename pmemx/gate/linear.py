"""A trained linear gate on what a site or a layer reads: softmax(W x), as in mixtures of LoRA experts (arXiv:2405.13053)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pmemx.core.bank import BankShape
from pmemx.core.gate import Level, SiteGate, layer_of
from pmemx.core.vote import Granularity


class LinearGate(SiteGate):
    """One matrix a site on the unit-RMS input, so that sites of different scale share a learning rate.

    level "layer" keeps one a layer and input width instead, of which that of the layer's first site serves
    (arXiv:2402.11455). abstain_bias is the initial advantage of "no expert": before training the base answers.
    """

    def __init__(
        self,
        shape: BankShape,
        *,
        granularity: Granularity = "prompt",
        level: Level = "site",
        abstain_bias: float = 2.0,
    ) -> None:
        super().__init__(shape, granularity=granularity, level=level)
        widths = {self._key(site): width for site, width in shape.sites.items()}
        self._index = {key: str(i) for i, key in enumerate(widths)}
        self.scores = nn.ModuleDict()
        for key, width in widths.items():
            layer = nn.Linear(width, shape.num_choices)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            layer.bias.data[0] = abstain_bias
            self.scores[self._index[key]] = layer

    def _key(self, site: str) -> tuple[str, int]:
        return layer_of(site) if self.level == "layer" else site, self.shape.sites[site]

    def forward(self, site: str, x: Float[Tensor, "batch token width_in"]) -> Float[Tensor, "batch token choice"]:
        """W (x / rms(x)) + b."""
        x = x.float()
        return self.scores[self._index[self._key(site)]](x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6))
