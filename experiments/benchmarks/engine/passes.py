"""Passes through the model: mixed batches, soft and sparse gates, generation, and training a gate."""

from collections.abc import Iterator
from functools import partial

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F

from pmemx.gate.arrow import ArrowGate
from pmemx.gate.oracle import OracleGate
from pmemx.gate.sequence import SequenceGate
from pmemx.gate.xlora import XLoraGate
from pmemx.runtime.attach import Routed, attach, attached
from pmemx.select.softmax import Softmax
from pmemx.select.top_k import TopK

from .memory import peak_bytes, resident_peak
from .row import BASE, OURS, PEER, SPEEDUP, Row, checked, grown, row_of
from .setting import Bench
from .timing import Spread, interleaved

# float32: a few units in the last place of logits of size 2. bfloat16: of its own grid.
LOGITS = {"float32": 1e-5, "bfloat16": 0.1}


def mixed(bench: Bench, experts: int, peft: PeftModel) -> Iterator[Row]:
    """A batch whose rows use different experts: PEFT's adapter_names, here the decision of the oracle gate."""
    setting = bench.setting
    own = [number % experts for number in range(setting.batch)]
    bank = bench.bank(experts)
    with attached(bench.twin(), bank, gate=OracleGate(bank.shape(setting.hidden)), select=TopK()) as routed:
        domain = torch.tensor(own, device=bench.device) + 1
        names = [f"e{number}" for number in own]
        yield _forward(bench, "mixed forward", experts, setting.batch, routed, peft, domain, adapter_names=names)
        shape = (setting.batch, setting.prompt, setting.new)
        yield _generate(bench, "mixed generate", experts, shape, routed, peft, domain, adapter_names=names)


def soft(bench: Bench, experts: int, peft: PeftModel) -> Iterator[Row]:
    """X-LoRA: every token weighs all experts by a classifier on the base's last hidden state."""
    setting = bench.setting
    bank = bench.bank(experts)
    gate = XLoraGate(bank.shape(setting.hidden)).to(bench.device).eval()
    classifier = peft.base_model.internal_xlora_classifier
    gate.layers.load_state_dict(classifier.layers.state_dict())
    with attached(bench.twin(), bank, gate=gate, select=Softmax()) as routed:
        yield _forward(bench, "soft gate", experts, setting.few, routed, peft)
        if experts == min(setting.peer):
            shape = (setting.few, setting.long_prompt, setting.long_new)
            yield _generate(bench, "soft gate generate", experts, shape, routed, peft)
        if experts in setting.trained:
            yield from _training(bench, experts, (routed.model, gate), (peft, classifier))


def sparse(bench: Bench, experts: int, peft: PeftModel) -> Row:
    """Arrow: every token takes the two experts whose directions it lies along, site by site."""
    setting = bench.setting
    bench.add_arrow(peft, experts, top_k=2)
    bank = bench.bank(experts)
    gate = ArrowGate(bank.shape(setting.hidden)).to(bench.device)
    with torch.no_grad(), attached(bench.twin(), bank, gate=gate, select=TopK(k=2)) as routed:
        peft(input_ids=bench.ids(1, 4))  # builds its directions, by an iteration that has not converged: give it ours
        for name, module in peft.base_model.model.named_modules():
            if name in bench.sites:
                module.lora_arrow["arrow_router"].prototypes.copy_(gate.prototypes(name))
        return _forward(bench, "token top-2", experts, setting.few, routed, peft)


def growing(bench: Bench) -> Iterator[Row]:
    """One decision a sequence, two experts each, while the bank grows: pmemx against itself."""
    setting = bench.setting
    ids = bench.ids(setting.batch, setting.tokens)

    def routed(experts: int) -> nn.Module:
        bank = bench.bank(experts)
        gate = SequenceGate(bank.shape(setting.hidden)).to(bench.device).eval()
        nn.init.normal_(gate.choice.weight)
        return attach(bench.twin(), bank, gate=gate, select=TopK(k=2)).model

    torch.manual_seed(2)
    parts = {str(experts): partial(_logits, routed(experts), ids) for experts in setting.experts}
    with torch.no_grad():
        times = interleaved({BASE: partial(_logits, bench.base, ids), **parts}, setting.rounds, wait=bench.wait)
    first = str(setting.experts[0])
    for experts in setting.experts:
        yield grown("sequence routing", experts, first, times)


def _forward(
    bench: Bench,
    operation: str,
    experts: int,
    rows: int,
    routed: Routed,
    peft: PeftModel,
    domain: Tensor | None = None,
    **extra: object,
) -> Row:
    ids = bench.ids(rows, bench.setting.tokens)

    def ours() -> Tensor:
        with routed.given(domain=domain):
            return _logits(routed.model, ids)

    def peer() -> Tensor:
        return _logits(peft, ids, **extra)

    with torch.no_grad():
        found = float((ours().float() - peer().float()).abs().max())
        difference = checked(operation, experts, found, LOGITS[bench.setting.dtype])
        parts = {BASE: lambda: _logits(bench.base, ids), OURS: ours, PEER: peer}
        return row_of(operation, experts, interleaved(parts, bench.setting.rounds, wait=bench.wait), difference)


def _generate(
    bench: Bench,
    operation: str,
    experts: int,
    shape: tuple[int, int, int],
    routed: Routed,
    peft: PeftModel,
    domain: Tensor | None = None,
    **extra: object,
) -> Row:
    rows, prompt, new = shape
    ids = bench.ids(rows, prompt)

    def generate(model: nn.Module, **extra: object) -> Tensor:
        return model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            **extra,
        )

    def ours() -> Tensor:
        with routed.given(domain=domain):
            return generate(routed.model)

    def peer() -> Tensor:
        return generate(peft, **extra)

    with torch.no_grad():
        difference = checked(operation, experts, float((ours() != peer()).sum()), 0)
        parts = {BASE: lambda: generate(bench.base), OURS: ours, PEER: peer}
        return row_of(operation, experts, interleaved(parts, bench.setting.rounds, wait=bench.wait), difference)


def _training(
    bench: Bench, experts: int, ours: tuple[nn.Module, nn.Module], peer: tuple[nn.Module, nn.Module]
) -> Iterator[Row]:
    ids = bench.ids(bench.setting.few, bench.setting.tokens)

    def step(model: nn.Module, trained: nn.Module) -> Tensor:
        trained.zero_grad()
        logits = _logits(model, ids)[:, :-1].flatten(0, 1).float()
        F.cross_entropy(logits, ids[:, 1:].flatten()).backward()
        return torch.cat([parameter.grad.flatten() for parameter in trained.parameters()])

    def base() -> Tensor:
        with torch.no_grad():
            return _logits(bench.base, ids)

    mine, theirs = step(*ours), step(*peer)
    found = float((mine - theirs).norm() / theirs.norm())
    difference = checked("gate training", experts, found, LOGITS[bench.setting.dtype])
    parts = {BASE: base, OURS: lambda: step(*ours), PEER: lambda: step(*peer)}
    yield row_of("gate training", experts, interleaved(parts, bench.setting.rounds, wait=bench.wait), difference)
    steps = {OURS: lambda: step(*ours), PEER: lambda: step(*peer)}
    live = {name: peak_bytes(part, bench.device) for name, part in steps.items()}
    yield _held("gate training, live tensors", experts, live)
    resident = {name: resident_peak(part) for name, part in steps.items()}
    yield _held("gate training, resident", experts, {name: value for name, value in resident.items() if value})


def _held(operation: str, experts: int, held: dict[str, int]) -> Row:
    amounts = {name: Spread.of([value / 2**20]) for name, value in held.items()}
    ratios = {SPEEDUP: Spread.of([held[PEER] / held[OURS]])} if len(held) == 2 else {}
    return Row(operation, experts, "MiB", amounts, ratios, {})


def _logits(model: nn.Module, ids: Tensor, **extra) -> Tensor:
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **extra).logits
