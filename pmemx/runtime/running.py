"""One pass of a routed model: what its rows may choose, what was decided, and what the sites add."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pmemx.core.bank import SiteFactors
from pmemx.core.errors import PmemxError
from pmemx.core.gate import ContextGate, SiteGate, layer_of
from pmemx.core.mix import Mix, Mixing, plan
from pmemx.core.routing import Observation, Observer, Routing, Select
from pmemx.core.vote import at_ends_of_turns, starts_of_turns
from pmemx.runtime.cache import Decision, Kept


@dataclass(frozen=True, eq=False)
class Rules:
    """What holds for the rows of a pass.

    barred: choices that a row may not make (one row for all). slots: of every expert of the gate, None where they stand in
    order. profiled: which rows a profile routes, and its routing. rows: of the bank's widest site. fixed: routing and plan
    of weights that stand instead of a gate. dtype: in which the experts' part is computed, the site's where None.
    """

    barred: Bool[Tensor, "batch choice"] | None
    slots: Int[Tensor, " expert"] | None
    profiled: tuple[Bool[Tensor, " batch"], Routing] | None
    fixed: Decision | None
    num_slots: int
    rows: int
    mixing: Mixing
    dtype: torch.dtype | None


@dataclass(eq=False)
class Pass:
    """The state of one pass; kept outlives it in the KV cache."""

    gate: SiteGate | ContextGate | None
    select: Select | None
    rules: Rules
    observers: tuple[Observer, ...]
    attended: Bool[Tensor, "batch token"]
    prompt: Bool[Tensor, "batch token"]
    domain: Int[Tensor, " batch"] | None
    kept: Kept
    continues: bool
    barred: Bool[Tensor, "rows choice"] | None
    decided: dict[str, Decision] = field(default_factory=dict)
    doubts: list[tuple[str, Tensor]] = field(default_factory=list)
    at_sites: Callable[[str, Tensor], None] | None = None

    def again(self) -> "Pass":
        """The same pass as it began, for a checkpointed layer that is computed a second time."""
        first = {name: decision for name, decision in self.decided.items() if name == "" or not self._by_site}
        return Pass(
            self.gate,
            self.select,
            self.rules,
            (),
            self.attended,
            self.prompt,
            self.domain,
            Kept(self.kept.rows, self.kept.stamp),
            self.continues,
            self.barred,
            first,
        )

    @property
    def _by_site(self) -> bool:
        return isinstance(self.gate, SiteGate) and self.gate.level != "model"

    def add(self, name: str, site: SiteFactors, x: Tensor, y: Tensor) -> Tensor:
        """What a site puts out, its experts' part included."""
        if self.at_sites is not None:
            self.at_sites(name, x)
            return y
        decision = self._decision(name, x)
        for observe in self.observers:
            observe(Observation(name, decision.scores, decision.routing, self.attended, self.prompt, self.domain))
        wide = y if self.rules.dtype is None else y.to(self.rules.dtype)
        if decision.mix is None:
            decision.mix = self._plan_again(name, decision, wide.dtype)
        if x.dim() == 3:
            return decision.mix.add(wide, x, site).to(y.dtype)
        # Some models hand a layer the tokens of all rows in one list; an expert of a mixture gets a part of them.
        rows = self.attended.shape[0]
        if x.shape[0] != self.attended.numel():
            raise PmemxError(
                f"{name!r} reads {x.shape[0]} tokens of the pass's {self.attended.numel()}, and cannot tell whose they are; "
                f"leave layers that see a part of the tokens out of the experts"
            )
        wide = decision.mix.add(wide.view(rows, -1, y.shape[-1]), x.view(rows, -1, x.shape[-1]), site)
        return wide.view_as(y).to(y.dtype)

    def _decision(self, name: str, x: Tensor) -> Decision:
        if self.rules.fixed is not None:
            return self.rules.fixed
        if not self._by_site:
            return self.decided[name] if name in self.decided else self.decided[""]
        assert isinstance(self.gate, SiteGate)
        who = name if self.gate.level == "site" else layer_of(name)
        if who in self.decided:
            return self.decided[who]
        if self.gate.granularity == "prompt" and self.continues:
            self.decided[who] = self.kept.decisions[who]
            return self.decided[who]
        with in_float32(x):
            said = self.gate(name, x if x.dim() == 3 else x.view(self.attended.shape[0], -1, x.shape[-1]))
            scores = self.gate.score_among(name, self.vote(who, said), self.barred)
        self.decide(who, scores)
        return self.decided[who]

    def vote(self, who: str, said: Float[Tensor, "batch token feature"]) -> Float[Tensor, "batch decision feature"]:
        """Apply the gate's granularity to what tokens say."""
        gate = self.gate
        assert gate is not None
        if gate.granularity == "token":
            return said
        if gate.granularity == "prompt":
            return gate.pool.on_prompt(said, self.prompt, self.barred)
        before = self.kept.tallies.get(who) if self.continues else None
        turned = gate.granularity == "turn"
        inside, starts = (self.prompt, starts_of_turns(self.prompt)) if turned else (self.attended, None)
        heard, self.kept.tallies[who] = gate.pool.on_prefix(said, inside, before, starts, self.barred)
        return at_ends_of_turns(heard, self.prompt) if turned else heard

    def decide(self, who: str, scores: Float[Tensor, "batch decision *head choice"]) -> None:
        """Choose from scores, head by head where they differ; a decision about the prompt is kept for the passes that follow."""
        assert self.gate is not None
        if not torch.compiler.is_compiling():
            self.doubts.append((who, scores.detach().isnan().any()))
        if scores.dim() == 3:
            decision = Decision(scores, self._choose(who, scores))
        else:
            routing = Routing.of_heads([self._choose(who, head) for head in scores.unbind(dim=2)])
            decision = Decision(scores.mean(dim=2), routing)
        if not self._by_site and decision.routing.weight.requires_grad:
            # Planned here and not at the first site, whose layer may be checkpointed: see Mix.
            decision.mix = self._plan(decision.routing, decision.routing.weight.dtype)
        self.decided[who] = decision
        if self.gate.granularity == "prompt":
            self.kept.decisions[who] = decision.detached()

    def check(self) -> None:
        """Raises PmemxError naming the site whose scores were not a number; read once, at the end of a pass."""
        if self.doubts and bool(torch.stack([doubt for _, doubt in self.doubts]).any()):
            who = next(who for who, doubt in self.doubts if bool(doubt))
            place = f"at {who!r}" if who else "for the whole model"
            raise PmemxError(
                f"{type(self.gate).__name__} scores NaN {place}; its input or its weights are not finite: "
                f"train it with a smaller learning rate, or in float32"
            )

    def _choose(self, who: str, scores: Tensor) -> Routing:
        assert self.select is not None
        bias = self.gate.load_bias(who) if isinstance(self.gate, SiteGate) else None
        rules = self.rules
        if self.barred is not None:
            scores = scores.masked_fill(self.barred[:, None], float("-inf"))
        routing = self.select(scores) if bias is None else self.select.biased(scores, bias)
        if rules.slots is not None:
            routing = Routing(rules.slots[routing.index], routing.weight, rules.num_slots)
        if rules.profiled is not None:
            which, other = rules.profiled
            tokens = routing.index.shape[1]
            weight = routing.weight.masked_fill(which[:, None, None], 0)
            routing = Routing(
                torch.cat([routing.index, other.index.expand(-1, tokens, -1)], dim=2),
                torch.cat([weight, other.weight.to(weight.dtype).expand(-1, tokens, -1)], dim=2),
                rules.num_slots,
            )
        return routing

    def _plan_again(self, name: str, decision: Decision, dtype: torch.dtype) -> Mix:
        """The plan of a decision; that of the pass before where it decided the same, with the factors that it gathered."""
        routing, gate = decision.routing, self.gate
        # Whether two decisions are the same is read from them: compiled code cannot, and an accelerator would wait.
        looks = routing.weight.device.type == "cpu" and not torch.compiler.is_compiling()
        shared = routing.index.shape[1] == 1 and not routing.weight.requires_grad
        if gate is None or gate.granularity == "prompt" or not (looks and shared):
            return self._plan(routing, dtype)
        before = self.kept.latest.get(name)
        self.kept.latest[name] = decision
        if before is not None and before.mix is not None and before.routing.equals(routing):
            return before.mix
        return self._plan(routing, dtype)

    def _plan(self, routing: Routing, dtype: torch.dtype) -> Mix:
        weight = routing.weight if routing.heads is None else routing.heads
        # On an accelerator the look would cost more than the products of nothing.
        looks = weight.device.type == "cpu" and not weight.requires_grad and not torch.compiler.is_compiling()
        weightless = looks and not bool(weight.any())
        if looks and not weightless and routing.heads is None and routing.index.shape[1] > 1:
            routing = self._shared(routing)
        return plan(routing, rows=self.rules.rows, dtype=dtype, mixing=self.rules.mixing, weightless=weightless)

    def _shared(self, routing: Routing) -> Routing:
        """One decision a row where all its attended tokens decide alike, which costs a fraction of a decision a token."""
        # What a token beyond the text decides is nobody's; the last one stands for the row.
        aside = ~self.attended[..., None]
        index, weight = routing.index[:, -1:], routing.weight[:, -1:]
        alike = ((routing.index == index) | aside).all() & ((routing.weight == weight) | aside).all()
        return Routing(index, weight, routing.num_experts) if bool(alike) else routing


def in_float32(x: Tensor) -> AbstractContextManager[object]:
    """For gates: an autocast would round their scores to half precision, of which some cannot hold gate.NEVER."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
