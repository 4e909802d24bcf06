"""PHATGOOSE: a sigmoid gate vector for every expert and site, trained alone with its expert (arXiv:2402.05859)."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.core.gate import NEVER, Level, SiteGate
from pmemx.core.vote import Granularity


class PhatgooseGate(SiteGate):
    """Vectors g_e, zero at first; experts that never met in training compete when they serve.

    In training an expert scores g_e . x and "no expert" 0, so that the softmax over the two is the paper's
    sigmoid(g_e . x). In use it scores LN(g_e) . LN(x) / sqrt(width), LN without scale and shift. abstain: the score of "no
    expert" in use; None, as published, never takes it.

    Where an expert skips a site its vector gets no gradient and it scores 0, the score of a token that says nothing.
    """

    trains_alone: ClassVar[bool] = True

    def __init__(
        self,
        shape: BankShape,
        *,
        granularity: Granularity = "token",
        level: Level = "site",
        abstain: float | None = None,
    ) -> None:
        super().__init__(shape, granularity=granularity, level=level)
        self.abstain = NEVER if abstain is None else abstain
        self._index = {site: i for i, site in enumerate(shape.sites)}
        self.vectors = nn.ParameterList(torch.zeros(len(shape.experts), width) for width in shape.sites.values())

    def forward(self, site: str, x: Float[Tensor, "batch token width_in"]) -> Float[Tensor, "batch token choice"]:
        """What is scored, and against what, differs between training and use."""
        x, vectors = x.float(), self.vectors[self._index[site]]
        if self.training:
            return F.pad(x @ vectors.T, (1, 0))
        width = x.shape[-1:]
        alike = F.layer_norm(x, width) @ F.layer_norm(vectors, width).T
        return F.pad(alike / width[0] ** 0.5, (1, 0), value=self.abstain)
