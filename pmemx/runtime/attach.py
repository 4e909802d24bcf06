"""Attach a bank to a frozen causal language model with hooks, so that leaving restores the base bit for bit."""

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import Cache

from pmemx.core.bank import ExpertBank, SiteFactors, place
from pmemx.core.block import CapabilityBlock
from pmemx.core.errors import IncompatibleBlock, PmemxError
from pmemx.core.gate import ContextGate, FactorGate, Gate, SiteGate
from pmemx.core.mix import Mixing
from pmemx.core.profile import Profile
from pmemx.core.routing import Observer, Select
from pmemx.runtime.cache import Kept, RoutingLayer, Stamp, routing_layer
from pmemx.runtime.cache_check import check_cached_generation
from pmemx.runtime.checkpointing import Recomputing
from pmemx.runtime.fitting import check_gate, check_sites
from pmemx.runtime.forward_arguments import CACHE, ForwardArguments
from pmemx.runtime.hearing import Hearing
from pmemx.runtime.lock import SharedLock
from pmemx.runtime.request import Request, attended_tokens, domain_by_row, prompt_by_row
from pmemx.runtime.rulebook import Defaults, Rulebook
from pmemx.runtime.running import Pass, in_float32
from pmemx.runtime.thread import PerThread

_attachments = itertools.count()


class Routed:
    """A model with a bank attached; made by `attach`, of no use after `detach`.

    Experts may be loaded, unloaded, swapped, activated and weighed while the model serves. What a request asks for
    (`given`) holds for one thread only. A decision about a prompt is taken in the pass that reads the prompt (an empty KV
    cache) and travels with the cache, so `model.generate` works unchanged: greedy, sampled or with beams.
    """

    def __init__(
        self,
        model: nn.Module,
        bank: ExpertBank,
        gate: Gate | None,
        select: Select | None,
        mixing: Mixing,
        dtype: torch.dtype | None,
    ) -> None:
        self.model, self.bank, self.gate, self.select = model, bank, gate, select
        self.profiles: Mapping[str, Profile] = {}
        self._arguments = ForwardArguments(model)
        self._recomputing = Recomputing(model, self._resuming)
        self._lock = SharedLock()
        self._thread = PerThread()
        self._hearing = Hearing(model, self._thread)
        self._defaults = Defaults()
        self._rulebook = Rulebook(model, bank, attachment=next(_attachments), mixing=mixing, dtype=dtype)
        self._handles: list[RemovableHandle] = []

    # What a thread asks for.

    @contextmanager
    def given(
        self,
        prompt: Bool[Tensor, "batch token"] | None = None,
        domain: Int[Tensor, " batch"] | None = None,
        active: Sequence[Sequence[str] | None] | None = None,
        profiles: Sequence[str | None] | None = None,
    ) -> Iterator[None]:
        """Say of the next passes of this thread what Request describes; what is not given stays as an outer block said."""
        for name in {name for row in active or () for name in row or ()}:
            self.bank.slot(name)
        for name in {name for name in profiles or () if name is not None}:
            if name not in self.profiles:
                raise PmemxError(f"no profile {name!r} is defined; there are: {', '.join(self.profiles) or 'none'}")
        said = {
            "prompt": prompt,
            "domain": domain,
            "active": None if active is None else tuple(None if row is None else tuple(row) for row in active),
            "profiles": None if profiles is None else tuple(profiles),
        }
        before = self._thread.request
        self._thread.request = replace(before, **{key: value for key, value in said.items() if value is not None})
        try:
            yield
        finally:
            self._thread.request = before

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Passes of this thread inside see the base model alone."""
        with self._thread.without_experts():
            yield

    @contextmanager
    def observed(self, observer: Observer) -> Iterator[None]:
        """Call the observer at every site of every pass of this thread inside."""
        before = self._thread.observers
        self._thread.observers = (*before, observer)
        try:
            yield
        finally:
            self._thread.observers = before

    @property
    def request(self) -> Request:
        """What this thread has said of its next passes; see `given`."""
        return self._thread.request

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """While this thread is inside, experts, weights and profiles stay as they are: changes by other threads wait.

        For several passes that make one answer. A change that this thread asks for inside is refused with a PmemxError.
        """
        with self._lock.shared():
            yield

    # What holds for everybody.

    def weigh(self, weights: Float[Tensor, " expert"] | Sequence[float] | None) -> None:
        """Instead of a gate: the same weight of every expert for every token, without a limit on their sum.

        None gives the word back to the gate. In the order of the bank's names.
        """
        by_name = None
        if weights is not None:
            given = torch.as_tensor(weights, dtype=torch.float32)
            if given.shape != (len(self.bank.names),):
                raise PmemxError(
                    f"{given.numel()} weights for {len(self.bank.names)} experts; give one weight an expert"
                )
            if not given.isfinite().all():
                raise PmemxError(f"weights {given.tolist()} are not finite; give numbers")
            by_name = {name: value for name, value in zip(self.bank.names, given.tolist(), strict=True) if value}
        with self._lock.alone():
            self._defaults = replace(self._defaults, serial=self._defaults.serial + 1, weights=by_name)

    def activate(self, names: Sequence[str] | None) -> None:
        """Let the gate choose among these experts and no expert only; None lets it choose among all again.

        Where the gate's experts are independent (`choice_rows`), the others are then as if they were absent. A gate that learnt
        its experts against one another scores the rest as before; what it would have given the others, the selection shares
        out, or nobody gets where scores are weights (select=raw).
        """
        if self.gate is None:
            raise PmemxError("there is no gate whose choice could be restricted; weigh the experts, or use profiles")
        for name in names or ():
            self.bank.slot(name)
        active = None if names is None else tuple(names)
        with self._lock.alone():
            self._defaults = replace(self._defaults, serial=self._defaults.serial + 1, active=active)

    def define(self, profile: Profile) -> None:
        """Make a profile known, or replace the one of its name. Raises IncompatibleBlock for an expert that is not there."""
        with self._lock.alone():
            for name in profile.weights:
                resident = self.bank.residents[self.bank.slot(name)]
                assert resident is not None
                if profile.versions.get(name, resident.version) != resident.version:
                    raise IncompatibleBlock(
                        f"profile {profile.name!r} wants version {profile.versions[name]!r} of {name!r}, the bank holds "
                        f"{resident.version!r}; swap that version in"
                    )
            self.profiles = {**self.profiles, profile.name: profile}

    def load(self, block: CapabilityBlock, *, name: str = "", version: str = "") -> None:
        """Put a block into a free slot; see ExpertBank.load. Weights and profiles reach it at once, a gate only if it was
        built for an expert of this name."""
        self._change(lambda: self.bank.load(block, name=name, version=version))

    def unload(self, name: str) -> None:
        """Free an expert's slot; no gate can choose it any more. Raises PmemxError while a profile or weights use it."""
        users = [profile.name for profile in self.profiles.values() if name in profile.weights]
        if users:
            raise PmemxError(f"profile {users[0]!r} uses {name!r}; define it anew without that expert first")
        if name in (self._defaults.weights or {}):
            raise PmemxError(f"fixed weights use {name!r}; weigh the experts without it first")
        self._change(lambda: self.bank.unload(name))

    def swap(self, name: str, block: CapabilityBlock, *, version: str = "") -> None:
        """Put another block into an expert's slot; see ExpertBank.swap. Caches that know the earlier one are refused."""
        pinned = [profile for profile in self.profiles.values() if profile.versions.get(name, version) != version]
        if pinned:
            raise PmemxError(
                f"profile {pinned[0].name!r} wants version {pinned[0].versions[name]!r} of {name!r}, not {version!r}; "
                f"define it anew first"
            )
        self._change(lambda: self.bank.swap(name, block, version=version))

    def _change(self, change: Callable[[], int]) -> None:
        if self._thread.running is not None:
            raise PmemxError("experts cannot change within a pass; do it between passes")
        with self._lock.alone():
            slot = change()
            resident = self.bank.residents[slot]
            if resident is not None and isinstance(self.gate, FactorGate) and resident.name in self.gate.shape.experts:
                expert = self.gate.shape.experts.index(resident.name)
                self.gate.read_expert(expert, self.bank.factors(resident.name))

    # What gates see, without the pass of the routed model.

    def decide(
        self, ids: Int[Tensor, "batch token"], attention: Int[Tensor, "batch token"]
    ) -> Float[Tensor, "batch decision *site choice"]:
        """What a context gate says of these rows. Raises PmemxError for a site gate."""
        gate = self._context_gate()
        kwargs, running = self._alone(ids, attention)
        heard = self._hearing.heard(gate, running, ids, kwargs)
        with in_float32(heard):
            return gate.score_among(heard, running.domain, running.barred)

    def pooled(
        self, ids: Int[Tensor, "batch token"], attention: Int[Tensor, "batch token"]
    ) -> Float[Tensor, "batch 1 feature"]:
        """What the prompts of these rows say to a context gate as a whole. Raises PmemxError for a site gate."""
        gate = self._context_gate()
        kwargs, running = self._alone(ids, attention)
        return gate.pool.on_prompt(self._hearing.said(gate, running, ids, kwargs), running.prompt)

    def pooled_at_sites(
        self, ids: Int[Tensor, "batch token"], attention: Int[Tensor, "batch token"]
    ) -> dict[str, Float[Tensor, "batch 1 feature"]]:
        """What the prompts of these rows say to a site gate at every site of the base. Raises PmemxError for another gate."""
        gate = self.gate
        if not isinstance(gate, SiteGate):
            raise PmemxError("only a gate that decides at sites hears what they read")
        kwargs, running = self._alone(ids, attention)
        found: dict[str, Tensor] = {}

        def hear(site: str, x: Tensor) -> None:
            with in_float32(x):
                found[site] = gate.pool.on_prompt(gate(site, x), running.prompt)

        self._hearing.at_sites(running, hear, ids, kwargs)
        return found

    def read(
        self, ids: Int[Tensor, "batch token"], attention: Int[Tensor, "batch token"]
    ) -> tuple[Float[Tensor, "batch seen width"], Bool[Tensor, "batch token"]]:
        """The states that a context gate reads of these rows, its reach included, and which tokens are prompt."""
        gate = self._context_gate()
        kwargs, running = self._alone(ids, attention)
        return self._hearing.states(gate, running, ids, kwargs), running.prompt

    def adopt(self, gate: Gate) -> None:
        """Serve with another gate from the next pass on: the same one grown by an expert, or trained anew.

        Caches that were decided by the earlier one are refused. Raises IncompatibleBlock when it was built for other experts
        or sites, PmemxError where no gate serves.
        """
        if self.gate is None:
            raise PmemxError("no gate serves here; attach the bank with a gate and a selection")
        check_gate(gate, self.bank)
        gate.to(self._device)
        with self._lock.alone():
            if isinstance(gate, FactorGate):
                for expert, name in enumerate(gate.shape.experts):
                    gate.read_expert(expert, self.bank.factors(name))
            self.gate = gate
            self._defaults = replace(self._defaults, serial=self._defaults.serial + 1)

    def _alone(self, ids: Tensor, attention: Tensor) -> tuple[dict[str, Any], Pass]:
        """A pass over whole rows that keeps no cache: what it is called with, and what it knows of them."""
        kwargs = {"input_ids": ids, "attention_mask": attention, "use_cache": False}
        return kwargs, self._prepare(kwargs)

    def _context_gate(self) -> ContextGate:
        if not isinstance(self.gate, ContextGate):
            raise PmemxError("only a gate that reads the context can say so without the model's pass; call the model")
        return self.gate

    # The pass.

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _attach(self) -> None:
        modules = dict(self.model.named_modules())
        begin, end = self._begin, self._end  # pyright: ignore[reportAttributeAccessIssue]
        self._handles.append(self.model.register_forward_pre_hook(begin, with_kwargs=True))
        self._handles.append(self.model.register_forward_hook(end, with_kwargs=True, always_call=True))
        for name, site in self.bank.items():
            self._handles.append(modules[name].register_forward_hook(self._hook(name, site)))
        _forget_compiled_code()

    def detach(self) -> None:
        """Remove every hook: the model is the base again, bit for bit."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        _forget_compiled_code()

    @torch.compiler.disable
    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        thread = self._thread
        if thread.disabled:
            return
        with ExitStack() as entered:
            entered.enter_context(self._lock.shared())
            kwargs = self._arguments.named(args, kwargs)
            running = self._prepare(kwargs)
            ids = kwargs.get("input_ids")
            if running.rules.fixed is None and not running.decided:
                self._hearing.decide(self.gate, self.bank, running, ids, kwargs)
            entered.enter_context(self._recomputing.during())
            thread.running, thread.entered = running, entered.pop_all()

    @torch.compiler.disable
    def _end(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        thread = self._thread
        running = thread.running
        if thread.disabled or running is None:
            return
        thread.running = None
        thread.entered.close()
        if output is None:
            return
        running.check()
        cache = self._arguments.named(args, kwargs).get(CACHE)
        if cache is None:
            parts = output.values() if isinstance(output, Mapping) else output
            cache = next((part for part in parts if isinstance(part, Cache)), None)
        if isinstance(cache, Cache):
            layer = routing_layer(cache)
            if layer is None:
                cache.layers.append(RoutingLayer(running.kept))
            else:
                layer.kept = running.kept
            running.kept.tokens = int(cache.get_seq_length())

    def _hook(self, name: str, site: SiteFactors) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
        def add_experts(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            thread = self._thread
            if thread.disabled:
                return None
            running = thread.running
            if running is None:
                raise PmemxError(
                    f"{name!r} was reached without a pass of the attached model; call the model itself, not a part of it"
                )
            return running.add(name, site, args[0], output)

        return add_experts

    def _resuming(self) -> AbstractContextManager[None]:
        running = self._thread.running
        return nullcontext() if running is None else self._resumed(running, self.bank.writes)

    @contextmanager
    def _resumed(self, running: Pass, writes: int) -> Iterator[None]:
        if self.bank.writes != writes:
            raise PmemxError("the bank was written between a pass and its backward pass; swap experts after the step")
        with self._thread.within(running.again()):
            yield

    def _prepare(self, kwargs: dict[str, Any]) -> Pass:
        ids, embeddings = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        tokens = ids if ids is not None else embeddings
        if tokens is None:
            raise PmemxError("a pass needs input_ids or inputs_embeds")
        rows, length = tokens.shape[:2]
        request = self._thread.request
        cache = kwargs.get(CACHE)
        stamp, rules = self._rulebook.rules(self.gate, request, self._defaults, self.profiles, rows)
        kept, continues = self._kept(cache, rows, stamp)
        before = int(cache.get_seq_length()) if continues and cache is not None else 0
        attended = attended_tokens(kwargs.get("attention_mask"), tokens, before)
        prompt = torch.zeros_like(attended) if continues else attended
        turned = self.gate is not None and rules.fixed is None and self.gate.granularity == "turn"
        # A turn that continues a cache is as long as its pass; what marked the first turn says nothing of later ones.
        later_turn = turned and continues and request.prompt is not None and request.prompt.shape[1] == length > 1
        if request.prompt is not None and (not continues or later_turn):
            prompt = prompt_by_row(request.prompt.to(tokens.device), rows, length)
        prompted = self.gate is not None and rules.fixed is None and self.gate.granularity == "prompt"
        if prompted or turned:
            self._check_prompt(request, kwargs, continues, length, turned)
        if not continues:
            kept.prompt_tokens = length if request.prompt is None else request.prompt.shape[1]
        running = Pass(
            gate=self.gate,
            select=self.select,
            rules=rules,
            observers=self._thread.observers,
            attended=attended,
            prompt=prompt,
            domain=domain_by_row(None if request.domain is None else request.domain.to(tokens.device), rows),
            kept=kept,
            continues=continues,
            barred=_without_prompt(prompt, rules.barred, self.gate) if prompted and not continues else rules.barred,
        )
        if continues and prompted and (isinstance(self.gate, ContextGate) or self.gate.level == "model"):  # type: ignore[union-attr]
            running.decided = kept.decisions
        return running

    @staticmethod
    def _check_prompt(request: Request, kwargs: dict[str, Any], continues: bool, length: int, turned: bool) -> None:
        """Raises PmemxError where a decision about the prompt would see drafts of the answer, or a part of the prompt only."""
        if request.prompt is not None:
            return
        asked = kwargs.get("logits_to_keep", 1)
        # Assisted generation lets the first pass read drafts behind the prompt, and asks for the logits of each.
        drafts = isinstance(asked, int) and asked > 1 and kwargs.get(CACHE) is not None
        if drafts and not continues:
            raise PmemxError(
                f"the last {asked - 1} tokens of this pass may be drafts, which a decision about the prompt must not "
                f"see; mark the prompt: `with routed.given(prompt=attention_mask.bool())`"
            )
        if continues and length > 1 and not turned:
            raise PmemxError(
                f"{length} tokens continue a cache whose decision was taken about the tokens before them; read the prompt in "
                f"one pass, or mark it if these are none of it: `with routed.given(prompt=...)`"
            )

    def _kept(self, cache: Any, rows: int, stamp: Stamp) -> tuple[Kept, bool]:
        if not isinstance(cache, Cache) or not cache.layers or not cache.get_seq_length() > 0:
            return Kept(rows, stamp), False
        layer = routing_layer(cache)
        if layer is None:
            raise PmemxError(
                "this cache was built without the bank attached, or without this one; begin generation anew inside it"
            )
        kept = layer.kept
        if kept.tokens != int(cache.get_seq_length()):
            raise PmemxError(
                f"the cache holds {int(cache.get_seq_length())} tokens, of which {kept.tokens} were read with the bank "
                f"enabled; start generation anew"
            )
        if kept.rows != rows:
            raise PmemxError(f"a cache of {kept.rows} rows is continued with {rows}; start generation anew")
        if kept.stamp != stamp:
            raise PmemxError(f"{_difference(kept.stamp, stamp)} since this cache was built; start generation anew")
        return kept, True


def _forget_compiled_code() -> None:
    # Compiled code does not notice hooks that come or go. Where nothing was compiled, the compiler is not even imported.
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _difference(before: Stamp, now: Stamp) -> str:
    revisions = dict(now.revisions)
    changed = [name for name, revision in before.revisions if revisions.get(name, revision) != revision]
    if changed:
        return f"expert {changed[0]!r} was swapped, loaded or unloaded"
    if before.profiles != now.profiles:
        return "the profiles of the rows changed"
    return "the gate, the active experts or their weights changed"


def attach(
    model: nn.Module,
    bank: ExpertBank,
    *,
    gate: Gate | None = None,
    select: Select | None = None,
    weights: Float[Tensor, " expert"] | Sequence[float] | None = None,
    base: str | None = None,
    mixing: Mixing = "after",
    dtype: torch.dtype | None = None,
    check_cache: bool = True,
) -> Routed:
    """Put the bank's experts on the model, chosen by a gate and a selection, weighed without one, or by profiles alone.

    base: fingerprint of the model, to refuse experts of another one. mixing: see core.mix.Mixing. dtype: in which experts
    are kept and computed, the model's where None; float32 experts on a model of half precision err less and cost more. The
    model's own weights, state dict and methods are never touched; the bank moves to its device and is rounded to the type
    for good. A gate serves in the mode that it is in: call gate.eval() unless it is being trained. check_cache: generate three
    tokens with a base that was never attached before, and stop where its KV cache changes what it says; see cache_check.
    Raises IncompatibleBlock when the base differs, a site of the bank is missing or of another width, or the gate was
    built for other experts or sites; PmemxError when the model has a bank already or
    fails the check of its cache.
    """
    if (gate is None) != (select is None) or (gate is not None and weights is not None):
        raise PmemxError("attach with a gate and a selection, or with weights, and not with both")
    if any(isinstance(getattr(hook, "__self__", None), Routed) for hook in model._forward_pre_hooks.values()):
        raise PmemxError(
            "a bank is attached to this model already; detach it first, or load the experts into its slots"
        )
    if base is not None and bank.base and base != bank.base:
        raise IncompatibleBlock(
            f"the bank's experts were trained on base {bank.base[:12]}, but the model is {base[:12]}; "
            f"load that base, or distil the experts again on this one"
        )
    check_sites(model, bank)
    if check_cache:
        check_cached_generation(model)
    if gate is not None:
        check_gate(gate, bank)
        gate.to(next(model.parameters()).device)
    routed = Routed(model, place(bank, model, dtype), gate, select, mixing, dtype)
    if isinstance(gate, FactorGate):
        for expert, name in enumerate(gate.shape.experts):
            gate.read_expert(expert, bank.factors(name))
    if weights is not None:
        routed.weigh(weights)
    routed._attach()
    return routed


@contextmanager
def attached(
    model: nn.Module,
    bank: ExpertBank,
    *,
    gate: Gate | None = None,
    select: Select | None = None,
    weights: Float[Tensor, " expert"] | Sequence[float] | None = None,
    base: str | None = None,
    mixing: Mixing = "after",
    dtype: torch.dtype | None = None,
    check_cache: bool = True,
) -> Iterator[Routed]:
    """`attach` for the length of a block; leaving it, even by an error, gives the base back bit for bit."""
    routed = attach(
        model,
        bank,
        gate=gate,
        select=select,
        weights=weights,
        base=base,
        mixing=mixing,
        dtype=dtype,
        check_cache=check_cache,
    )
    try:
        yield routed
    finally:
        routed.detach()


def _without_prompt(prompt: Tensor, barred: Tensor | None, gate: Gate | None) -> Tensor | None:
    """A row in which nothing is marked as prompt may choose no expert only: there is nothing to decide about."""
    silent = ~prompt.any(dim=1)
    if gate is None or (silent.device.type == "cpu" and not bool(silent.any())):
        return barred
    experts = torch.arange(gate.shape.num_choices, device=prompt.device) > 0
    unheard = silent[:, None] & experts
    return unheard if barred is None else barred | unheard
