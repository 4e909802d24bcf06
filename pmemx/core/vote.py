"""Votes: what tokens say one by one becomes a decision per token, per prefix or per prompt."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Granularity = Literal["token", "prefix", "prompt", "turn"]
"""Who decides together: every token alone; the tokens up to this one; the tokens of the prompt, once for all that follow;
or the turns of the user so far, anew with each: a turn is known before it is read, so all its tokens hear what its last one
hears, and so does its answer, which is the model's own word and no evidence."""


@dataclass(frozen=True, eq=False)
class Tally:
    """The vote of the tokens so far, which travels with a KV cache."""

    value: Float[Tensor, "batch feature"]
    count: Float[Tensor, "batch 1"]

    def rows(self, index: Tensor) -> "Tally":
        """The tally of rows that were reordered, repeated or selected."""
        return Tally(self.value[index], self.count[index])


class Pool(ABC):
    """How what tokens say adds up along a sequence, from the left alone. A frozen dataclass."""

    @abstractmethod
    def on_prefix(
        self,
        said: Float[Tensor, "batch token feature"],
        inside: Bool[Tensor, "batch token"],
        before: Tally | None,
        starts: Bool[Tensor, "batch token"] | None = None,
        barred: Bool[Tensor, "rows choice"] | None = None,
    ) -> tuple[Float[Tensor, "batch token feature"], Tally]:
        """What is heard at every token, of the tokens inside up to it, those of earlier passes included.

        starts: with which tokens a turn begins, for pools to which that matters; None: nowhere. barred: choices that a row may
        not make (one row for all), for pools in which choices compete: a barred expert is an absent one.
        """

    def on_prompt(
        self,
        said: Float[Tensor, "batch token feature"],
        prompt: Bool[Tensor, "batch token"],
        barred: Bool[Tensor, "rows choice"] | None = None,
    ) -> Float[Tensor, "batch 1 feature"]:
        """What is heard after the last token of the prompt."""
        return self.on_prefix(said, prompt, None, barred=barred)[0][:, -1:]


@dataclass(frozen=True)
class Mean(Pool):
    """Every token counts alike; zero where nothing was heard yet."""

    def on_prefix(
        self,
        said: Float[Tensor, "batch token feature"],
        inside: Bool[Tensor, "batch token"],
        before: Tally | None,
        starts: Bool[Tensor, "batch token"] | None = None,
        barred: Bool[Tensor, "rows choice"] | None = None,
    ) -> tuple[Float[Tensor, "batch token feature"], Tally]:
        """See Pool."""
        count = _count(said, inside, before)
        # Not a product with the mask: a position outside may hold anything, infinity included.
        value = said.masked_fill(~inside[..., None], 0).cumsum(dim=1)
        if before is not None:
            value = value + before.value[:, None]
        return value / count.clamp_min(1), Tally(value[:, -1], count[:, -1])

    def on_prompt(
        self,
        said: Float[Tensor, "batch token feature"],
        prompt: Bool[Tensor, "batch token"],
        barred: Bool[Tensor, "rows choice"] | None = None,
    ) -> Float[Tensor, "batch 1 feature"]:
        """See Pool."""
        total = said.masked_fill(~prompt[..., None], 0).sum(dim=1, keepdim=True)
        return total / prompt[..., None].sum(dim=1, keepdim=True).clamp_min(1)


@dataclass(frozen=True)
class Max(Pool):
    """The strongest token counts, feature by feature; zero where nothing was heard yet."""

    def on_prefix(
        self,
        said: Float[Tensor, "batch token feature"],
        inside: Bool[Tensor, "batch token"],
        before: Tally | None,
        starts: Bool[Tensor, "batch token"] | None = None,
        barred: Bool[Tensor, "rows choice"] | None = None,
    ) -> tuple[Float[Tensor, "batch token feature"], Tally]:
        """See Pool."""
        count = _count(said, inside, before)
        value = said.masked_fill(~inside[..., None], float("-inf")).cummax(dim=1).values
        if before is not None:
            value = torch.maximum(value, before.value[:, None])
        return torch.where(count > 0, value, torch.zeros_like(value)), Tally(value[:, -1], count[:, -1])

    def on_prompt(
        self,
        said: Float[Tensor, "batch token feature"],
        prompt: Bool[Tensor, "batch token"],
        barred: Bool[Tensor, "rows choice"] | None = None,
    ) -> Float[Tensor, "batch 1 feature"]:
        """See Pool."""
        found = said.masked_fill(~prompt[..., None], float("-inf")).amax(dim=1, keepdim=True)
        return torch.where(prompt.any(dim=1)[:, None, None], found, torch.zeros_like(found))


@dataclass(frozen=True)
class Last(Pool):
    """The last token counts alone; zero where nothing was heard yet."""

    def on_prefix(
        self,
        said: Float[Tensor, "batch token feature"],
        inside: Bool[Tensor, "batch token"],
        before: Tally | None,
        starts: Bool[Tensor, "batch token"] | None = None,
        barred: Bool[Tensor, "rows choice"] | None = None,
    ) -> tuple[Float[Tensor, "batch token feature"], Tally]:
        """See Pool."""
        count = _count(said, inside, before)
        places = torch.arange(said.shape[1], device=said.device).expand(inside.shape)
        last = torch.where(inside, places, -1).cummax(dim=1).values[..., None]
        found = said.gather(1, last.clamp_min(0).expand_as(said))
        earlier = torch.zeros_like(said[:, :1]) if before is None else before.value[:, None]
        heard = torch.where(last >= 0, found, earlier)
        return heard, Tally(heard[:, -1], count[:, -1])


def at_ends_of_turns(
    heard: Float[Tensor, "batch token feature"], prompt: Bool[Tensor, "batch token"]
) -> Float[Tensor, "batch token feature"]:
    """Every token of a turn, a run of prompt tokens, hears what the last of them hears; the others hear what they heard."""
    places = torch.arange(prompt.shape[1], device=prompt.device).expand(prompt.shape)
    ends = prompt & ~torch.cat([prompt[:, 1:], torch.zeros_like(prompt[:, :1])], dim=1)
    following = torch.where(ends, places, prompt.shape[1]).flip(1).cummin(dim=1).values.flip(1)
    return heard.gather(1, torch.where(prompt, following, places)[..., None].expand_as(heard))


def starts_of_turns(prompt: Bool[Tensor, "batch token"]) -> Bool[Tensor, "batch token"]:
    """The first token of every run of prompt tokens."""
    return prompt & ~torch.cat([torch.zeros_like(prompt[:, :1]), prompt[:, :-1]], dim=1)


def _count(said: Tensor, inside: Tensor, before: Tally | None) -> Float[Tensor, "batch token 1"]:
    count = inside[..., None].to(said.dtype).cumsum(dim=1)
    return count if before is None else count + before.count[:, None]
