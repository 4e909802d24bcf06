"""Polytropon: a task uses some of the skills of an inventory, and which it uses is learnt (arXiv:2202.13914)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pmemx.core.bank import BankShape
from pmemx.core.gate import ContextGate
from pmemx.core.vote import Granularity
from pmemx.gate.skills import skill_scores


class PolytroponGate(ContextGate):
    """Logits Z [task, site, expert]; expert e serves task t with the weight sigmoid(Z_te) / sum_f sigmoid(Z_tf).

    Those are the shares of a plain softmax of the scores log sigmoid(Z). In training, sigmoid(Z) gives way to samples of the
    relaxed Bernoulli of temperature 1, which explore which skills a task can do without. The task of a row is its true
    choice as the caller gives it; a row of unknown task, or of a task for no expert, goes to no expert. Every site has its
    own Z, as in the authors' code and in PEFT. The experts stand still here, which the papers call Poly-z
    (arXiv:2211.03831), where the paper trains them along.
    """

    def __init__(self, shape: BankShape, *, granularity: Granularity = "prompt") -> None:
        super().__init__(shape, granularity=granularity)
        num_experts = len(shape.experts)
        self.logits = nn.Parameter(torch.empty(num_experts, len(shape.sites), num_experts))
        # Near zero, as in the authors' code: at the start every task uses all skills alike.
        nn.init.uniform_(self.logits, -1e-3, 1e-3)

    def read(self, hidden: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token feature"]:
        """Nothing: the task decides."""
        return hidden[..., :0]

    def score(
        self, pooled: Float[Tensor, "batch token feature"], domain: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch token site choice"]:
        """The task's rows; in training every row of the batch draws its own."""
        batch, token, _ = pooled.shape
        return skill_scores(self.logits, domain, draws=self.training)[:, None].expand(batch, token, -1, -1)
