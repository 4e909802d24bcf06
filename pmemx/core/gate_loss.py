"""What a gate's decisions should look like: sharp, balanced, right; functions of scores, of their softmax shares, of logits."""

import torch
from jaxtyping import Bool, Float, Int
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


def mole_balance_loss(share: Float[Tensor, "decision choice"]) -> Float[Tensor, ""]:
    """-log prod_e P_e = -sum_e log P_e, P_e the mean share of expert e: E log E when balanced (MoLE, arXiv:2404.13628).

    The paper's mean is over the blocks of one input; here it is over all decisions, those of a batch and of its sites: the
    batch and not each text must use every expert. "No expert", which the paper has not, is no factor, and so gives way.
    An expert that has no share at all adds the constant -log of the smallest number, and no gradient.
    """
    mean = share[:, 1:].mean(dim=0)
    return -mean.clamp_min(torch.finfo(share.dtype).tiny).log().sum()


def localised_balance_loss(
    importance: Float[Tensor, "row expert"], own: Bool[Tensor, "row expert"], delta: float
) -> Float[Tensor, ""]:
    """(std / mean)^2 of Z = importance * (1 + delta where the expert is of the row's type, 1 - delta elsewhere).

    importance: shares of an expert at one site, summed over the decisions of a row. own: whether expert and row are of one
    type; in the paper (LoRAMoE, arXiv:2312.09979) two types with many experts each, in a bank of one expert a domain each
    its own. The paper divides the variance by the mean; here it is divided by the mean twice, as in the authors' code, so that
    the number of tokens does not scale it. Like importance_loss it takes the variance of all entries, and does not estimate it.

    The loss is least, and Z even, when a row's own experts have (1 - delta) / (1 + delta) times the share of each other:
    delta > 0, as published, holds a row's own experts back, delta < 0 favours them, and delta = 0 balances within every
    row. Long rows weigh more than short ones, so that with rows of unequal length it never reaches zero.
    """
    weighed = importance * torch.where(own, 1 + delta, 1 - delta)
    return weighed.var(correction=0) / weighed.mean().square().clamp_min(torch.finfo(weighed.dtype).tiny)


def prediction_entropy_loss(
    logits: Float[Tensor, "batch token vocabulary"], prompt: Bool[Tensor, "batch token"]
) -> Float[Tensor, ""]:
    """Mean entropy in nats of what the model predicts after every token of the prompt; 0 where there is no prompt.

    It reads no label, so a gate can be fitted to the very texts it will serve (AdaMerging, arXiv:2310.02575; WE-MoE,
    arXiv:2402.00433, whose models classify an image once; a language model predicts at every token).
    """
    return _entropy(logits[prompt].float().softmax(dim=-1)).sum() / prompt.sum().clamp_min(1)


def _entropy(share: Float[Tensor, "*decision choice"]) -> Float[Tensor, "*decision"]:
    # The slope of -p log p is infinite at 0, where a choice that was not allowed stands; clamped, it has none.
    return torch.special.entr(share.clamp_min(torch.finfo(share.dtype).tiny)).sum(dim=-1)
