"""SMEAR: a prompt is read once, and the experts' parameters are averaged for it (arXiv:2306.03745)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.core.errors import ConfigError
from pmemx.core.gate import NEVER, Level, SiteGate
from pmemx.core.vote import Granularity
from pmemx.gate.sharing import shared


class SmearGate(SiteGate):
    """LN(mean_t h) . LN(r_e), with a trained row r_e an expert; both norms as in the released code.

    The norm of the mean has scale and shift; that of the rows has a scale, init_scale at first, which keeps the first
    scores small. A shift of the rows would move all scores alike, so there is none. What is read is averaged before it is
    scored. The merge of the parameters themselves is mixing=before. abstain: the score of "no expert"; None, as published,
    never takes it.
    """

    def __init__(
        self,
        shape: BankShape,
        *,
        granularity: Granularity = "prompt",
        level: Level = "layer",
        init_scale: float = 0.01,
        abstain: float | None = None,
    ) -> None:
        super().__init__(shape, granularity=granularity, level=level)
        if init_scale <= 0:
            raise ConfigError(f"gate.init_scale = {init_scale} must be positive; the paper's code has 0.01")
        self.abstain = NEVER if abstain is None else abstain
        self._number, widths = shared(shape, level)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.rows = nn.ParameterList(init_scale * torch.randn(len(shape.experts), width) for width in widths)
        self.scales = nn.ParameterList(torch.full((width,), init_scale) for width in widths)

    def forward(self, site: str, x: Float[Tensor, "batch token width_in"]) -> Float[Tensor, "batch token feature"]:
        """What the site reads, to be averaged."""
        return x.to(self.scales[0].dtype)

    def score(
        self, site: str, pooled: Float[Tensor, "batch decision feature"]
    ) -> Float[Tensor, "batch decision choice"]:
        """See SiteGate."""
        number = self._number[site]
        rows = F.layer_norm(self.rows[number], pooled.shape[-1:], self.scales[number])
        return F.pad(self.norms[number](pooled) @ rows.T, (1, 0), value=self.abstain)
