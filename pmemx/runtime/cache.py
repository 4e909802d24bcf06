"""What a routed model keeps between passes, as one more layer of the KV cache, so that it is reordered and selected with it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DummyLayer

from pmemx.core.errors import PmemxError
from pmemx.core.mix import Mix
from pmemx.core.profile import Profile
from pmemx.core.routing import Routing
from pmemx.core.vote import Tally


@dataclass(eq=False)
class Decision:
    """Scores (None for fixed weights), the routing that was chosen from them, and the plan to compute it once there is one."""

    scores: Float[Tensor, "batch decision choice"] | None
    routing: Routing
    mix: Mix | None = None

    def detached(self) -> "Decision":
        """The same decision without its gradient, for passes that are not trained through it."""
        if not self.routing.weight.requires_grad:
            return self
        return Decision(None if self.scores is None else self.scores.detach(), self.routing.detached())

    def take(self, index: Int[Tensor, " batch"]) -> None:
        """Keep these rows. The plan holds gathered factors, so it stays where rows change places with their equals."""
        index = index.to(self.routing.index.device)
        routing = self.routing.rows(index)
        self.mix = self.mix if routing.equals(self.routing) else None
        self.routing = routing
        self.scores = None if self.scores is None else self.scores[index]


@dataclass(frozen=True)
class Stamp:
    """Under what a cache was built: which attachment, what the request and the defaults allowed, and the revisions of the
    experts in play."""

    attachment: int
    defaults: int
    active: tuple[tuple[str, ...] | None, ...] | None
    profiles: tuple[Profile | None, ...] | None
    revisions: tuple[tuple[str, int], ...]


@dataclass(eq=False)
class Kept:
    """Decisions about the prompt by who took them (a site, a layer, or "" for the whole model), and what is needed to go on:
    running votes, the second cache of passes without experts, how many tokens were read, of which prompt, and the last hidden
    states that a gate's reach asks for."""

    rows: int
    stamp: Stamp
    decisions: dict[str, Decision] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    base: Cache | None = None
    tokens: int = 0
    prompt_tokens: int = 0
    last: Float[Tensor, "batch reach width"] | None = None
    latest: dict[str, Decision] = field(default_factory=dict)
    """By who took it, the last decision that the whole of a pass shared: the next one may well be the same."""


class RoutingLayer(DummyLayer):
    """Carries Kept through whatever happens to a cache."""

    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self.kept = kept

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows change places, as in beam search."""
        self._take(beam_idx, of_base=lambda base: base.reorder_cache(beam_idx))  # type: ignore[arg-type]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Rows are selected."""
        self._take(indices, of_base=lambda base: base.batch_select_indices(indices))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row is repeated."""
        index = torch.arange(self.kept.rows).repeat_interleave(repeats)
        self._take(index, of_base=lambda base: base.batch_repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Tokens of an answer are taken back. Raises PmemxError where a running vote heard them, or a decision saw them."""
        kept, left = self.kept, self.kept.tokens - abs(tokens_to_remove)
        if tokens_to_remove and (kept.tallies or kept.last is not None):
            raise PmemxError("a running vote cannot take tokens back; use a gate of granularity prompt or token here")
        if kept.decisions and left < kept.prompt_tokens:
            raise PmemxError(
                f"a decision was taken about {kept.prompt_tokens} tokens, of which {left} would be left; begin a new cache"
            )
        kept.tokens = left
        if kept.base is not None:
            kept.base.crop(tokens_to_remove)

    def reset(self) -> None:
        """The cache is emptied; the pass that fills it again decides anew."""

    def _take(self, index: Tensor, of_base: Callable[[Cache], None]) -> None:
        kept = self.kept
        kept.rows = index.shape[0]
        for decision in kept.decisions.values():
            decision.take(index)
        kept.latest.clear()
        for name, tally in kept.tallies.items():
            kept.tallies[name] = tally.rows(index.to(tally.value.device))
        if kept.last is not None:
            kept.last = kept.last[index.to(kept.last.device)]
        if kept.base is not None:
            of_base(kept.base)


def routing_layer(cache: Cache) -> RoutingLayer | None:
    """The layer that a routed model has put into a cache."""
    return next((layer for layer in reversed(cache.layers) if isinstance(layer, RoutingLayer)), None)
