"""LoRA Soups CAT: one trained weight an expert and site, whatever the input (arXiv:2410.13025)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.core.gate import NEVER, ContextGate
from pmemx.core.vote import Granularity


class SoupsGate(ContextGate):
    """The softmax of theta at every site, theta being zero at first: the average of the experts.

    As the released code has it; the paper's weights are free numbers. An expert that skips a site keeps its share there,
    and adds nothing. Nothing is computed of the base.
    """

    def __init__(self, shape: BankShape, *, granularity: Granularity = "prompt") -> None:
        super().__init__(shape, granularity=granularity)
        self.theta = nn.Parameter(torch.zeros(len(shape.sites), len(shape.experts)))

    def read(self, hidden: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token feature"]:
        """Nothing: all inputs are treated alike."""
        return hidden[..., :0]

    def score(
        self, pooled: Float[Tensor, "batch token feature"], domain: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch token site choice"]:
        """theta, for every decision."""
        return F.pad(self.theta, (1, 0), value=NEVER).expand(*pooled.shape[:2], -1, -1)
