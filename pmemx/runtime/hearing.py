"""What gates hear of the base before a pass begins: a second, quiet look at the same tokens."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache, StaticCache

from pmemx.core.bank import ExpertBank
from pmemx.core.gate import ContextGate, Gate, HeadedGate, SiteGate
from pmemx.runtime.fitting import check_sites_of
from pmemx.runtime.forward_arguments import CACHE
from pmemx.runtime.look import Look
from pmemx.runtime.running import Pass, in_float32
from pmemx.runtime.thread import PerThread

Ids = Int[Tensor, "batch token"] | None


class Hearing:
    """Looks at one model, for the passes of one routed model. ids, kwargs: the inputs of the pass that is about to begin,
    by name (`ForwardArguments.named`)."""

    def __init__(self, model: nn.Module, thread: PerThread) -> None:
        self._look = Look(model)
        self._thread = thread

    def decide(self, gate: Gate | None, bank: ExpertBank, running: Pass, ids: Ids, kwargs: dict[str, Any]) -> None:
        """Give the pass the decisions of a gate that decides before the model's own pass begins; of others, none."""
        if isinstance(gate, ContextGate):
            heard = self.heard(gate, running, ids, kwargs)
            with in_float32(heard):
                if isinstance(gate, HeadedGate):
                    scores = gate.score_heads(heard, running.domain)
                else:
                    scores = gate.score_among(heard, running.domain, running.barred)
            if scores.dim() == 3:
                running.decide("", scores)
            else:
                check_sites_of(gate, bank)
                for number, site in enumerate(gate.shape.sites):
                    running.decide(site, scores[:, :, number])
        elif gate is not None and gate.level == "model":
            running.decide("", self._look_at_sites(gate, running, ids, kwargs))

    def heard(
        self, gate: ContextGate, running: Pass, ids: Ids, kwargs: dict[str, Any]
    ) -> Float[Tensor, "batch decision feature"]:
        """What the gate's pool has by now of what the gate read."""
        return running.vote("", self.said(gate, running, ids, kwargs))

    def said(
        self, gate: ContextGate, running: Pass, ids: Ids, kwargs: dict[str, Any]
    ) -> Float[Tensor, "batch token feature"]:
        """What the gate makes of every token."""
        hidden = self.states(gate, running, ids, kwargs)
        with in_float32(hidden):
            return gate.read(hidden)

    def states(
        self, gate: ContextGate, running: Pass, ids: Ids, kwargs: dict[str, Any]
    ) -> Float[Tensor, "batch seen width"]:
        """The states that the gate reads, its reach before them included; 0 where nothing is to be read."""
        with self._thread.without_experts():
            hidden = self._look.hidden(gate.layer, ids, kwargs, self._base_cache(gate, running, kwargs))
        inside = running.prompt if gate.granularity == "prompt" else running.attended
        hidden = hidden.masked_fill(~inside[..., None], 0)
        if gate.reach:
            before = running.kept.last
            if before is None:
                before = hidden.new_zeros(hidden.shape[0], gate.reach, hidden.shape[2])
            hidden = torch.cat([before, hidden], dim=1)
            if gate.granularity != "prompt":
                running.kept.last = hidden[:, -gate.reach :]
        return hidden

    def _look_at_sites(self, gate: SiteGate, running: Pass, ids: Ids, kwargs: dict[str, Any]) -> Tensor:
        total: list[Tensor] = []
        trains = torch.is_grad_enabled()

        def hear(site: str, x: Tensor) -> None:
            with torch.set_grad_enabled(trains), in_float32(x):
                scores = gate.score_among(site, running.vote(site, gate(site, x)), running.barred)
                total[:] = [total[0] + scores] if total else [scores]

        self.at_sites(running, hear, ids, kwargs, self._base_cache(gate, running, kwargs))
        return total[0]

    def at_sites(
        self,
        running: Pass,
        hear: Callable[[str, Tensor], None],
        ids: Ids,
        kwargs: dict[str, Any],
        cache: Cache | None = None,
    ) -> None:
        """Hear what every site of the base reads: a pass of its body in which no expert adds anything."""
        running.at_sites = hear
        try:
            with self._thread.within(running):
                self._look.over(ids, kwargs, cache)
        finally:
            running.at_sites = None

    def _base_cache(self, gate: Gate, running: Pass, kwargs: dict[str, Any]) -> Cache | None:
        """The second cache: what a gate that looks at the base in every pass keeps, so that it looks at new tokens only."""
        beside = kwargs.get(CACHE)
        if gate.granularity == "prompt":
            # The masks that come with a static cache fit no other.
            return self._look.new_cache(beside) if isinstance(beside, StaticCache) else None
        if not self._look.caches(kwargs):
            return None
        if running.kept.base is None:
            running.kept.base = self._look.new_cache(beside)
        return running.kept.base
