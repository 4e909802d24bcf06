"""A record of routing that stores sums, not tensors: it grows with sites and choices, never with the passes it watches."""

import math
from collections.abc import Sequence
from threading import Lock
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pmemx.core.errors import PmemxError
from pmemx.core.routing import Observation
from pmemx.core.shares import renormalised, shares

NO_EXPERT = "no_expert"


class _Totals(NamedTuple):
    """Sums over decisions, or over pairs of neighbouring ones, site by site."""

    weight: Float[Tensor, "site choice"]
    decisions: Float[Tensor, " site"]
    entropy: Float[Tensor, " site"]
    uniform: Float[Tensor, " site"]
    margin: Float[Tensor, " site"]
    pairs: Float[Tensor, " site"]
    switches: Float[Tensor, " site"]


class RoutingTrace:
    """An observer of routing: load, confusion, entropy, margin and switch rate, over all passes since it was made.

    experts: the bank's, slot by slot, free ones too: `bank.slot_names`. domains: names of the true choices that
    observations tell; by default no expert and the experts, which is right for a gate that was built from this bank, as
    long as no free slot stands before an expert; else ("no_expert", *gate.shape.experts). prompt_only: count tokens of the
    prompt alone.

    A decision that is taken anew at every token counts at every attended one; a decision about a row counts once a pass,
    if the row has an attended token in it. Weights are those of the routing, with what they lack to 1 for no expert.
    Entropy and margin are the gate's own, of softmax(scores) before the selection; where weights are fixed they are those
    of the weights, scaled to sum 1.

    Threads may share a trace. Traces of several processes add up: `one + other`.
    """

    def __init__(
        self, experts: Sequence[str], *, domains: Sequence[str] | None = None, prompt_only: bool = False
    ) -> None:
        self.choices = (NO_EXPERT, *experts)
        self.domains = self.choices if domains is None else tuple(domains)
        self.prompt_only = prompt_only
        self._sites: dict[str, Float[Tensor, " total"]] = {}
        self._confusion = torch.zeros(len(self.domains), len(self.choices), dtype=torch.float64)
        self._lock = Lock()

    @torch.no_grad()
    def __call__(self, observation: Observation) -> None:
        """Add the decisions of one site in one pass. Raises PmemxError if they are not about this trace's experts."""
        routing = observation.routing
        if routing.num_experts != len(self.choices) - 1:
            raise PmemxError(
                f"the trace is of {len(self.choices) - 1} slots, but {observation.site} chose among "
                f"{routing.num_experts}; make it with bank.slot_names, free slots too"
            )
        dense = routing.dense().double()
        weight = torch.cat([(1 - dense.sum(dim=-1, keepdim=True)).clamp_min(0), dense], dim=-1)
        tokens = observation.prompt if self.prompt_only else observation.attended
        weight = weight.expand(tokens.shape[0], -1, -1)  # fixed weights are one decision for all rows
        scores = observation.scores
        share = renormalised(weight.clamp_min(0)) if scores is None else shares(scores).double()
        counted = tokens if weight.shape[1] == tokens.shape[1] else tokens.any(dim=1, keepdim=True)
        entropy = torch.special.entr(share).sum(dim=-1)
        uniform = torch.full_like(entropy, math.log(share.shape[-1]))
        best, second = share.topk(2, dim=-1).values.unbind(dim=-1)
        winner = weight.argmax(dim=-1)
        pairs = counted[:, 1:] & counted[:, :-1]
        switches = pairs & (winner[:, 1:] != winner[:, :-1])
        # Packed, so that a site costs one row of numbers and one transfer.
        decisions = torch.stack([torch.ones_like(entropy), entropy, uniform, best - second], dim=-1)
        totals = torch.cat(
            [
                torch.cat([weight, decisions], dim=-1)[counted].sum(dim=0),
                torch.stack([pairs.sum(), switches.sum()]).double(),
            ]
        ).cpu()
        confusion = torch.zeros_like(self._confusion)
        if observation.domain is not None:
            known = counted & (observation.domain >= 0)[:, None]
            true = observation.domain[:, None].expand(known.shape)
            cells = true[known].cpu(), winner[known].cpu()
            confusion.index_put_(cells, confusion.new_ones(()), accumulate=True)
        with self._lock:
            self._sites[observation.site] = self._sites.get(observation.site, torch.zeros_like(totals)) + totals
            self._confusion = self._confusion + confusion

    def __add__(self, other: "RoutingTrace") -> "RoutingTrace":
        """What one trace would hold that had seen all that both did. Raises PmemxError if they count different things."""
        for name in ("choices", "domains", "prompt_only"):
            if getattr(self, name) != getattr(other, name):
                raise PmemxError(
                    f"traces with {name} {getattr(self, name)} and {getattr(other, name)} do not add up; make both alike"
                )
        both = self._empty()
        for trace in (self, other):
            with trace._lock:
                both._confusion = both._confusion + trace._confusion
                for site, totals in trace._sites.items():
                    both._sites[site] = both._sites.get(site, torch.zeros_like(totals)) + totals
        return both

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that were observed, in the order of their first observation: the rows of what is told by site."""
        with self._lock:
            return tuple(self._sites)

    @property
    def decisions(self) -> Float[Tensor, " site"]:
        """How many decisions were counted."""
        return self._totals().decisions

    @property
    def load(self) -> Float[Tensor, "site choice"]:
        """Mean weight of each choice."""
        totals = self._totals()
        return totals.weight / totals.decisions.clamp_min(1)[:, None]

    @property
    def confusion(self) -> Float[Tensor, "domain choice"]:
        """Of the decisions on rows whose true choice is `domain`, the share whose greatest weight fell on each choice.

        Over all sites; a tie goes to the first choice, and a domain that was never seen has a row of zeros.
        """
        with self._lock:
            return self._confusion / self._confusion.sum(dim=1, keepdim=True).clamp_min(1)

    @property
    def entropy(self) -> Float[Tensor, " site"]:
        """Mean entropy of a decision in nats, from 0 (sure) to `uniform_entropy` (all the same)."""
        totals = self._totals()
        return totals.entropy / totals.decisions.clamp_min(1)

    @property
    def uniform_entropy(self) -> Float[Tensor, " site"]:
        """The reference of `entropy`: log(experts + 1) for the experts that the gate scores, no expert being a choice too."""
        totals = self._totals()
        return totals.uniform / totals.decisions.clamp_min(1)

    @property
    def margin(self) -> Float[Tensor, " site"]:
        """Mean lead of the best share over the second, from 0 (a tie) to 1 (sure)."""
        totals = self._totals()
        return totals.margin / totals.decisions.clamp_min(1)

    @property
    def switch_rate(self) -> Float[Tensor, " site"]:
        """Of the neighbouring tokens that count, the share whose greatest weights fall on different choices.

        Neighbours are of one pass: 0 where one decision holds for a row, and in passes of one token.
        """
        totals = self._totals()
        return totals.switches / totals.pairs.clamp_min(1)

    def summary(self) -> dict[str, object]:
        """For JSON: means over the decisions of all sites, load by site, confusion of the domains that were seen."""
        # A copy of one moment: other threads may go on.
        still = self + self._empty()
        decisions, entropy, uniform, margin, pairs, switches = (float(column.sum()) for column in still._totals()[1:])
        return {
            "decisions": int(decisions),
            "entropy": entropy / max(decisions, 1),
            "uniform_entropy": uniform / max(decisions, 1),
            "margin": margin / max(decisions, 1),
            "switch_rate": switches / max(pairs, 1),
            "load": {site: self._by_choice(row) for site, row in zip(still.sites, still.load, strict=True)},
            "confusion": {
                domain: self._by_choice(row)
                for domain, row in zip(self.domains, still.confusion, strict=True)
                if row.any()
            },
        }

    def _empty(self) -> "RoutingTrace":
        return RoutingTrace(self.choices[1:], domains=self.domains, prompt_only=self.prompt_only)

    def _by_choice(self, row: Float[Tensor, " choice"]) -> dict[str, float]:
        return dict(zip(self.choices, row.tolist(), strict=True))

    def _totals(self) -> _Totals:
        with self._lock:
            rows = list(self._sites.values())
        choices, empty = len(self.choices), self._confusion.new_zeros(0, len(self.choices) + len(_Totals._fields) - 1)
        table = torch.stack(rows) if rows else empty
        return _Totals(table[:, :choices], *table[:, choices:].unbind(dim=1))
