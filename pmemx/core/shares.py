"""Shares: the one place where scores meet temperature, normalisation and the limits that all selections have."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pmemx.core.errors import ConfigError
from pmemx.core.routing import Routing


def shares(scores: Float[Tensor, "*decision choice"], temperature: float = 1.0) -> Float[Tensor, "*decision choice"]:
    """softmax(scores / temperature) in float32; a choice of score -inf has share 0 exactly.

    A decision whose every score is -inf may choose nothing, and so goes to no expert. NaN stays NaN: it is not hidden.
    """
    scaled = scores.float()
    if temperature != 1:
        scaled = scaled / temperature
    # The least finite number is below every score that counts, and leaves a softmax over nothing something to choose.
    # Before the softmax, not after it: its gradient over nothing would be NaN, whatever replaces its value.
    nobody = scaled[..., :1].clamp_min(torch.finfo(scaled.dtype).min)
    return torch.cat([nobody, scaled[..., 1:]], dim=-1).softmax(dim=-1)


def renormalised(share: Float[Tensor, "*decision chosen"]) -> Float[Tensor, "*decision chosen"]:
    """The same shares with sum 1; where none is left, none comes back."""
    return share / share.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)


def routing_of(
    share: Float[Tensor, "batch token chosen"],
    choice: Int[Tensor, "batch token chosen"],
    num_experts: int,
    *,
    renormalise: bool,
) -> Routing:
    """Chosen choices with their shares; an entry that fell to no expert keeps its place with weight 0.

    renormalise makes the shares sum to 1, the share of no expert among them.
    """
    weight = renormalised(share) if renormalise else share
    return Routing((choice - 1).clamp_min(0), weight.masked_fill(choice == 0, 0.0), num_experts)


def check_temperature(temperature: float) -> None:
    """Raises ConfigError unless the temperature is positive and finite."""
    if not 0 < temperature < math.inf:
        raise ConfigError(
            f"select.temperature = {temperature} must be positive and finite; 1 is the usual value, "
            f"and select=top_k is the hard choice"
        )


def check_k(k: int) -> None:
    """Raises ConfigError if k is below 1."""
    if k < 1:
        raise ConfigError(f"select.k = {k} chooses nothing; it must be at least 1")


def check_k_fits(k: int, num_experts: int) -> None:
    """Raises ConfigError if k is above the number of experts, which a selection learns from its first scores."""
    if k > num_experts:
        raise ConfigError(
            f"select.k = {k} is larger than the {num_experts} experts of the bank; set select.k={num_experts} or less, "
            f"or load more experts"
        )
