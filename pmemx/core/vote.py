"""Votes: what tokens say one by one becomes a decision per token, per prefix or per prompt."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Granularity = Literal["token", "prefix", "prompt"]
Pool = Literal["mean", "max"]


@dataclass(frozen=True, eq=False)
class Tally:
    """The vote of the tokens so far, which travels with a KV cache."""

    value: Float[Tensor, "batch feature"]
    count: Float[Tensor, "batch 1"]

    def rows(self, index: Tensor) -> "Tally":
        """The tally of rows that were reordered, repeated or selected."""
        return Tally(self.value[index], self.count[index])


def vote_on_prompt(
    said: Float[Tensor, "batch token feature"], prompt: Bool[Tensor, "batch token"], pool: Pool
) -> Float[Tensor, "batch 1 feature"]:
    """The mean or the maximum over the prompt's tokens; zero for a row without a prompt."""
    inside = prompt[..., None]
    if pool == "max":
        found = said.masked_fill(~inside, float("-inf")).amax(dim=1, keepdim=True)
        return torch.where(inside.any(dim=1, keepdim=True), found, torch.zeros_like(found))
    # Not a product with the mask: a position outside the prompt may hold anything, infinity included.
    total = said.masked_fill(~inside, 0).sum(dim=1, keepdim=True)
    return total / inside.sum(dim=1, keepdim=True).clamp_min(1)


def vote_on_prefix(
    said: Float[Tensor, "batch token feature"],
    attended: Bool[Tensor, "batch token"],
    pool: Pool,
    before: Tally | None,
) -> tuple[Float[Tensor, "batch token feature"], Tally]:
    """At every token the mean or the maximum over the tokens up to it, those of earlier passes included."""
    inside = attended[..., None]
    count = inside.to(said.dtype).cumsum(dim=1)
    if before is not None:
        count = count + before.count[:, None]
    if pool == "max":
        value = said.masked_fill(~inside, float("-inf")).cummax(dim=1).values
        if before is not None:
            value = torch.maximum(value, before.value[:, None])
        heard = torch.where(count > 0, value, torch.zeros_like(value))
    else:
        value = said.masked_fill(~inside, 0).cumsum(dim=1)
        if before is not None:
            value = value + before.value[:, None]
        heard = value / count.clamp_min(1)
    return heard, Tally(value[:, -1], count[:, -1])
