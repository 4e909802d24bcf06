"""Multi-head routing: Polytropon with an allocation of its own for every piece of an expert (arXiv:2211.03831)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pmemx.core.bank import BankShape
from pmemx.core.errors import ConfigError
from pmemx.core.gate import HeadedGate
from pmemx.core.vote import Granularity
from pmemx.gate.skills import skill_scores


class MultiHeadGate(HeadedGate):
    """Logits Z [task, site, head, expert]: piece h of what a site reads and of what it puts out has its own allocation.

    Weights come from Z as in PolytroponGate, in training as well, and with one head it is that gate. Published with mixing
    "before"; the experts stand still here (MHR-z in the paper).
    """

    def __init__(self, shape: BankShape, *, heads: int = 8, granularity: Granularity = "prompt") -> None:
        super().__init__(shape, granularity=granularity)
        if heads < 1:
            raise ConfigError(f"gate.heads = {heads} must be at least 1")
        uneven = [(site, width) for site, width in shape.sites.items() if width % heads]
        if uneven:
            raise ConfigError(
                f"gate.heads = {heads} does not divide the {uneven[0][1]} inputs of {uneven[0][0]!r} into equal pieces; "
                f"choose a number that divides the input and output width of every site"
            )
        self.heads = heads
        num_experts = len(shape.experts)
        self.logits = nn.Parameter(torch.empty(num_experts, len(shape.sites), heads, num_experts))
        # As in PolytroponGate.
        nn.init.uniform_(self.logits, -1e-3, 1e-3)

    def read(self, hidden: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token feature"]:
        """Nothing: the task decides."""
        return hidden[..., :0]

    def score_heads(
        self, pooled: Float[Tensor, "batch token feature"], domain: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch token site head choice"]:
        """The task's rows; in training every row of the batch draws its own."""
        batch, token, _ = pooled.shape
        return skill_scores(self.logits, domain, draws=self.training)[:, None].expand(batch, token, -1, -1, -1)
