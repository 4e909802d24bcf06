"""What a gate's decisions should look like: sharp, balanced, right; functions of scores and their softmax shares."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pmemx.core.gate import NEVER


def supervision_loss(scores: Float[Tensor, "decision choice"], choice: Int[Tensor, " decision"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the scores against the true choice.

    A true choice that the gate never takes ("no expert", for a gate that has none) teaches nothing and is left out.
    """
    nats = F.cross_entropy(scores, choice, reduction="none")
    taken = scores.gather(1, choice[:, None])[:, 0] > NEVER / 2
    return nats[taken].sum() / taken.sum().clamp_min(1)


def balance_loss(share: Float[Tensor, "decision choice"], k: int = 1) -> Float[Tensor, ""]:
    """choices * sum_c f_c P_c: k when balanced, the number of choices when sure and collapsed (Switch, arXiv:2101.03961).

    f_c is the share of decisions with c among their k best choices, "no expert" being one of them, P_c its mean share.
    Gradients flow through P alone. k is at most the number of choices.
    """
    best = F.one_hot(share.topk(k, dim=-1).indices, share.shape[1]).sum(dim=1).to(share.dtype)
    return share.shape[1] * (best.mean(dim=0) * share.mean(dim=0)).sum()


def importance_loss(share: Float[Tensor, "decision choice"]) -> Float[Tensor, ""]:
    """(std / mean)^2 of the summed shares: 0 when balanced, choices - 1 when collapsed (arXiv:1701.06538, equation 7).

    The standard deviation is that of all choices, not an estimate from a sample of them.
    """
    importance = share.sum(dim=0)
    return importance.var(correction=0) / importance.mean().square()


def z_loss(scores: Float[Tensor, "decision choice"]) -> Float[Tensor, ""]:
    """Mean squared log-sum-exp of the scores: keeps them small (ST-MoE, arXiv:2202.08906)."""
    return scores.logsumexp(dim=-1).square().mean()


def entropy_loss(share: Float[Tensor, "decision choice"]) -> Float[Tensor, ""]:
    """Mean entropy of a decision, in nats: low when decisions are sharp."""
    return _entropy(share).mean()


def mutual_information_loss(share: Float[Tensor, "decision choice"]) -> Float[Tensor, ""]:
    """-(H(mean share) - mean H(share)): low when decisions are sharp and balanced over the batch (arXiv:2212.08066)."""
    return entropy_loss(share) - _entropy(share.mean(dim=0))


def _entropy(share: Float[Tensor, "*decision choice"]) -> Float[Tensor, "*decision"]:
    # The slope of -p log p is infinite at 0, where a choice that was not allowed stands; clamped, it has none.
    return torch.special.entr(share.clamp_min(torch.finfo(share.dtype).tiny)).sum(dim=-1)
