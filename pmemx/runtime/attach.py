"""Attach a bank to a frozen causal language model with hooks, so that leaving restores the base bit for bit."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pmemx.core.bank import ExpertBank, SiteFactors, place
from pmemx.core.errors import IncompatibleBlock, PmemxError
from pmemx.core.gate import ContextGate, Gate, SiteGate
from pmemx.core.mix import mix
from pmemx.core.routing import Routing, Select

Observer = Callable[[str, "Tensor | None", Routing], None]
"""Called with the site, the scores [batch, token, choice] (None for fixed weights) and the routing of every mix."""


@dataclass(frozen=True, eq=False)
class Given:
    """What a caller knows of the rows of a pass: which tokens are prompt, and the true choice (0 none, -1 unknown)."""

    prompt: Bool[Tensor, "batch token"] | None = None
    domain: Int[Tensor, " batch"] | None = None


class Routed:
    """A model with a bank attached; made by `attached`, of no use after it.

    A decision about a prompt is taken in the pass that reads the prompt (an empty KV cache) and kept while the cache
    grows, so `model.generate` works unchanged, greedy or sampled.
    """

    def __init__(self, model: nn.Module, bank: ExpertBank, gate: Gate | None, select: Select | None) -> None:
        self.model, self.bank, self.gate, self.select = model, bank, gate, select
        self.observer: Observer | None = None
        self._fixed: Routing | None = None
        self._inactive: Tensor | None = None
        self._enabled = True
        self._given = Given()
        self._prompt: Tensor | None = None
        self._kept: dict[str, tuple[Tensor | None, Routing]] = {}
        self._handles: list[RemovableHandle] = []

    @contextmanager
    def given(
        self, prompt: Bool[Tensor, "batch token"] | None = None, domain: Int[Tensor, " batch"] | None = None
    ) -> Iterator[None]:
        """Tell the next passes which tokens are prompt (default: all attended ones) and the true choice of each row."""
        before, self._given = self._given, Given(prompt, domain)
        try:
            yield
        finally:
            self._given = before

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Passes inside see the base model alone."""
        before, self._enabled = self._enabled, False
        try:
            yield
        finally:
            self._enabled = before

    def weigh(self, weights: Float[Tensor, " expert"]) -> None:
        """Instead of a gate: the same weight of every expert for every token, without a limit on their sum."""
        if weights.shape != (len(self.bank),):
            raise PmemxError(
                f"{tuple(weights.shape)[0]} weights for {len(self.bank)} experts; give one weight an expert"
            )
        chosen = weights.nonzero()[:, 0]
        self._fixed = Routing(chosen[None, None], weights[chosen][None, None], len(self.bank))

    def activate(self, names: Sequence[str] | None) -> None:
        """Let the gate choose among these experts and no expert only; None lets it choose among all again."""
        if names is None:
            self._inactive = None
            return
        unknown = [name for name in names if name not in self.bank.names]
        if unknown:
            raise PmemxError(f"no expert {unknown[0]!r} in this bank; there are {', '.join(self.bank.names)}")
        active = [True, *(name in names for name in self.bank.names)]
        self._inactive = ~torch.tensor(active, device=next(self.model.parameters()).device)

    def decide(
        self, ids: Int[Tensor, "batch token"], attention: Int[Tensor, "batch token"]
    ) -> Float[Tensor, "batch 1 choice"]:
        """What a context gate says of these rows, without the pass of the routed model. Raises PmemxError for a site gate."""
        self._begin(self.model, (), {"input_ids": ids, "attention_mask": attention})
        scores, _ = self._kept.get("", (None, None))
        if scores is None:
            raise PmemxError("a gate at the sites decides in the pass of the model; call the model")
        return scores

    def _attach(self) -> None:
        modules = dict(self.model.named_modules())
        self._handles.append(self.model.register_forward_pre_hook(self._begin, with_kwargs=True))
        for name, site in self.bank.items():
            self._handles.append(modules[name].register_forward_hook(self._hook(name, site)))

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a pass: on an empty cache forget the last prompt's decisions; a context gate decides at once."""
        if not self._enabled or self._fixed is not None:
            return
        past = kwargs.get("past_key_values")
        ids = kwargs.get("input_ids", args[0] if args else None)
        embeddings = kwargs.get("inputs_embeds")
        given = ids if ids is not None else embeddings
        assert given is not None
        rows = given.shape[0]
        if past is not None and past.get_seq_length() > 0:
            kept = next(iter(self._kept.values()), None)
            if kept is not None and kept[1].index.shape[0] != rows:
                raise PmemxError(
                    f"a cache of {kept[1].index.shape[0]} rows is continued with {rows}; start generation anew"
                )
            self._prompt = None
            return
        self._kept.clear()
        self._prompt = self._prompt_mask(given, kwargs.get("attention_mask"))
        if isinstance(self.gate, ContextGate):
            hidden = self._context(self.gate.layer, ids, kwargs)
            scores = self.gate(hidden, self._prompt, self._given.domain)
            self._kept[""] = (scores, self._choose(scores))

    def _prompt_mask(self, like: Tensor, attention: Tensor | None) -> Tensor:
        if self._given.prompt is not None:
            return self._given.prompt
        everything = torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
        return everything if attention is None or attention.dim() != 2 else attention[:, -like.shape[1] :].bool()

    def _context(self, layer: int, ids: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
        embeddings = kwargs.get("inputs_embeds")
        if layer == 0:
            return embeddings if embeddings is not None else self.model.get_input_embeddings()(ids)  # type: ignore[operator]
        with self.disabled(), torch.no_grad():
            out = self.model(
                input_ids=ids,
                inputs_embeds=embeddings,
                attention_mask=kwargs.get("attention_mask"),
                position_ids=kwargs.get("position_ids"),
                output_hidden_states=True,
                use_cache=False,
            )
        return out.hidden_states[layer]

    def _choose(self, scores: Tensor) -> Routing:
        assert self.select is not None
        if self._inactive is not None:
            scores = scores.masked_fill(self._inactive, float("-inf"))
        return self.select(scores)

    def _hook(self, name: str, site: SiteFactors) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
        def add_experts(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if not self._enabled:
                return None
            x = args[0]
            scores, routing = self._route(name, x)
            if self.observer is not None:
                self.observer(name, scores, routing)
            return output if routing.index.shape[2] == 0 else output + mix(x, site, routing).to(output.dtype)

        return add_experts

    def _route(self, site: str, x: Tensor) -> tuple[Tensor | None, Routing]:
        if self._fixed is not None:
            rows = x.shape[0], 1, self._fixed.index.shape[2]
            return None, Routing(self._fixed.index.expand(rows), self._fixed.weight.expand(rows), len(self.bank))
        if not isinstance(self.gate, SiteGate):
            return self._kept[""]
        if self.gate.granularity == "prompt" and site in self._kept:
            return self._kept[site]
        scores = self.gate(site, x)
        if self.gate.granularity == "token":
            return scores, self._choose(scores)
        assert self._prompt is not None
        prompt = self._prompt[..., None]
        scores = (scores * prompt).sum(dim=1, keepdim=True) / prompt.sum(dim=1, keepdim=True).clamp_min(1)
        self._kept[site] = (scores, self._choose(scores))
        return self._kept[site]


@contextmanager
def attached(
    model: nn.Module,
    bank: ExpertBank,
    *,
    gate: Gate | None = None,
    select: Select | None = None,
    weights: Float[Tensor, " expert"] | Sequence[float] | None = None,
    base: str | None = None,
) -> Iterator[Routed]:
    """The model with the bank's experts, chosen by a gate and a selection, or always on with fixed weights.

    base: fingerprint of the model, to refuse experts of another one. Leaving the block removes every hook; the
    model's own weights, state dict and methods are never touched.
    Raises IncompatibleBlock when the base differs or the model lacks a site of the bank.
    """
    if (weights is None) == (gate is None or select is None):
        raise PmemxError("attach with a gate and a selection, or with weights, and not with both")
    if base is not None and bank.base and base != bank.base:
        raise IncompatibleBlock(
            f"the bank's experts were trained on base {bank.base[:12]}, but the model is {base[:12]}; "
            f"load that base, or distil the experts again on this one"
        )
    modules = dict(model.named_modules())
    missing = [site for site in bank.site_names if site not in modules]
    if missing:
        raise IncompatibleBlock(
            f"the model has no layer {missing[0]!r} ({len(missing)} missing); it is another architecture"
        )
    routed = Routed(model, place(bank, model), gate, select)
    if weights is not None:
        parameter = next(model.parameters())
        routed.weigh(torch.as_tensor(weights, dtype=parameter.dtype, device=parameter.device))
    routed._attach()
    try:
        yield routed
    finally:
        routed._detach()
