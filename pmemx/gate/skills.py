"""Which skills a task uses: the relaxed allocation of Polytropon (arXiv:2202.13914), which multi-head routing shares."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli
from torch.nn import functional as F

from pmemx.core.gate import NEVER


def skill_scores(
    logits: Float[Tensor, "task *place expert"], domain: Int[Tensor, " batch"] | None, *, draws: bool
) -> Float[Tensor, "batch *place choice"]:
    """log sigmoid of a task's logits, so that a softmax gives sigmoid(Z) / sum sigmoid(Z); "no expert" is never chosen.

    draws: samples of the relaxed Bernoulli of temperature 1 instead of its means, reparametrised, anew for every row. Task
    t is that of choice t + 1; a row of unknown task (None, or -1), or of a task for no expert (0), goes to no expert.
    """
    task = logits.new_zeros(1, dtype=torch.long) if domain is None else domain
    found = logits[(task - 1).clamp_min(0)]
    if draws:
        found = LogitRelaxedBernoulli(found.new_ones(()), logits=found).rsample()
    scores = F.pad(F.logsigmoid(found), (1, 0), value=NEVER)
    nobody = F.pad(torch.full_like(found, NEVER), (1, 0))
    known = (task > 0).view(-1, *[1] * (scores.dim() - 1))
    return torch.where(known, scores, nobody)
