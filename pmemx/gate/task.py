"""Routing by a known task: a trained table says which experts serve it (Polytropon, arXiv:2202.13914)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pmemx.core.bank import BankShape
from pmemx.core.gate import NEVER, ContextGate
from pmemx.core.vote import Granularity


class TaskGate(ContextGate):
    """Logits [task, choice], where the task of a row is its true choice as the caller gives it.

    The oracle answers with the task's own expert, whatever that is worth. This gate starts there, with a lead of
    `sharpness` for the own expert, and learns from the answers alone which other experts help a task, so it may end
    above the oracle. The selection's softmax stands in for Polytropon's normalised sigmoids. A row whose task is unknown
    (None, or -1) goes to no expert.
    """

    def __init__(self, shape: BankShape, *, granularity: Granularity = "prompt", sharpness: float = 5.0) -> None:
        super().__init__(shape, granularity=granularity)
        self.table = nn.Parameter(sharpness * torch.eye(shape.num_choices))
        nobody = torch.full((shape.num_choices,), NEVER)
        nobody[0] = 0
        self.register_buffer("nobody", nobody, persistent=False)

    def read(self, hidden: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token feature"]:
        """Nothing: the task decides."""
        return hidden[..., :0]

    def score(
        self, pooled: Float[Tensor, "batch token feature"], domain: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch token choice"]:
        """The row of the task."""
        batch, token, _ = pooled.shape
        task = self.table.new_full((batch,), -1, dtype=torch.long) if domain is None else domain
        scores = torch.where((task < 0)[:, None], self.get_buffer("nobody"), self.table[task.clamp_min(0)])
        return scores[:, None].expand(batch, token, -1)
