"""Fixed share: a belief that follows a text from one expert's domain to another's (Herbster and Warmuth 1998)."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pmemx.core.errors import ConfigError
from pmemx.core.vote import Pool, Tally


@dataclass(frozen=True)
class FixedShare(Pool):
    """Log-probabilities that the text at this token is of each choice; tokens say log-likelihood ratios.

    The forward recursion of a hidden Markov model (doi:10.1023/A:1007424614876): before a token is heard, a share of all
    belief goes back to the prior, then belief is multiplied by what the token says. So no evidence counts for ever: what
    stands against a choice is bounded by the share, whatever was heard before. A token that says nothing about any choice
    changes nothing. hold: in how many tokens that speak, if they spoke for all choices alike, belief falls to half. turn: the share that goes back where a turn begins. none: the prior of "no expert"; the experts have the rest in equal parts.
    """

    hold: float = 64.0
    turn: float = 0.9
    none: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.hold <= 1e12:
            raise ConfigError(
                f"hold = {self.hold} tokens is not between 0 and 1e12; 16 forgets within a sentence, 1000 within a book"
            )
        if not 0 <= self.turn <= 1:
            raise ConfigError(
                f"turn = {self.turn} is no share of belief in [0, 1]; 0 keeps all of it from turn to turn"
            )
        if not 0 < self.none < 1:
            raise ConfigError(f"none = {self.none} is no probability between 0 and 1; 0.5 is even")

    @property
    def share(self) -> float:
        """What goes back to the prior at every token: (1 - share)^hold = 1/2."""
        return -math.expm1(-math.log(2) / self.hold)

    def on_prefix(
        self,
        said: Float[Tensor, "batch token choice"],
        inside: Bool[Tensor, "batch token"],
        before: Tally | None,
        starts: Bool[Tensor, "batch token"] | None = None,
        barred: Bool[Tensor, "rows choice"] | None = None,
    ) -> tuple[Float[Tensor, "batch token choice"], Tally]:
        """See Pool. A token that is not inside, or that says nothing of what may be chosen, changes nothing.

        Choices that are barred have no prior, and what is said of them is not heard: belief is shared among the others.
        """
        prior = self.prior(said, barred)
        belief = prior.expand(said.shape[0], -1) if before is None else before.value.exp()
        evident = said != 0
        if barred is not None:
            evident = evident & ~barred[:, None]
            said = said.masked_fill(barred[:, None], float("-inf"))
        speaks = inside & evident.any(dim=-1)
        moves = speaks if starts is None else speaks | (starts & inside)
        # The largest is taken out first: probabilities stay numbers, whatever the evidence.
        said = said - said.amax(dim=-1, keepdim=True)
        likelihood, share = said.exp(), self._shares(said, speaks, starts)
        beliefs = []
        for token in range(said.shape[1]):
            back = share[:, token]
            heard = (back * prior + (1 - back) * belief) * likelihood[:, token]
            heard = heard / heard.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(heard.dtype).tiny)
            belief = torch.where(moves[:, token, None], heard, belief)
            beliefs.append(belief)
        found = torch.stack(beliefs, dim=1).clamp_min(torch.finfo(said.dtype).tiny).log()
        count = inside[..., None].to(said.dtype).sum(dim=1)
        return found, Tally(found[:, -1], count if before is None else count + before.count)

    def _shares(
        self,
        said: Float[Tensor, "batch token choice"],
        speaks: Bool[Tensor, "batch token"],
        starts: Bool[Tensor, "batch token"] | None,
    ) -> Float[Tensor, "batch token 1"]:
        """What goes back to the prior before each token."""
        share = self.share * speaks.to(said.dtype)
        if starts is not None:
            share = torch.where(starts, torch.full_like(share, max(self.turn, self.share)), share)
        return share[..., None]

    def prior(
        self, said: Float[Tensor, "*decision choice"], barred: Bool[Tensor, "rows choice"] | None = None
    ) -> Float[Tensor, "rows choice"]:
        """What is believed before anything was heard, by row where rows may choose differently: experts share alike."""
        open_to = said.new_ones(1, said.shape[-1]) if barred is None else (~barred).to(said.dtype)
        others = open_to[:, 1:]
        experts = (1 - self.none) * others / others.sum(dim=1, keepdim=True).clamp_min(1)
        prior = torch.cat([torch.full_like(open_to[:, :1], self.none), experts], dim=1)
        return prior / prior.sum(dim=1, keepdim=True)
