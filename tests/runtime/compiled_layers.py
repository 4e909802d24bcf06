"""A script that compiles models with experts and prints what came of it; without the test run's checks of shapes, which
no compiler can trace."""

import json
import sys
from collections.abc import Callable

import torch
from tiny_models import VOCAB, WIDTH, block, logits, tiny_llama, trained_like
from torch import Tensor, nn
from torch._dynamo.utils import counters

from pmemx.core.bank import ExpertBank
from pmemx.gate.linear import LinearGate
from pmemx.gate.sequence import SequenceGate
from pmemx.gate.xlora import XLoraGate
from pmemx.runtime.attach import Routed, attached
from pmemx.select.softmax import Softmax
from pmemx.select.top_k import TopK

SERVED = {
    "fixed weights": None,
    "site by token": (lambda shape: LinearGate(shape, granularity="token"), TopK(k=2)),
    "layer by prefix": (lambda shape: LinearGate(shape, granularity="prefix", level="layer"), Softmax()),
    "context by token": (XLoraGate, TopK(k=2)),
    "context by prompt": (SequenceGate, TopK()),
}
IDS = torch.randint(3, VOCAB, (4, 9), generator=torch.Generator().manual_seed(7))
OTHER = (IDS + 11) % (VOCAB - 3) + 3


def bank_of(model: nn.Module) -> ExpertBank:
    return ExpertBank([block(model, number) for number in range(8)])


def asked(name: str, bank: ExpertBank) -> dict[str, object]:
    if SERVED[name] is None:
        return {"weights": [0.5] * 8}
    kind, select = SERVED[name]
    return {"gate": trained_like(kind(bank.shape(WIDTH))), "select": select}


def served(model: Callable[..., object], routed: Routed) -> list[Tensor]:
    """Logits for two texts, after a swap, and under another decision."""
    seen = [logits(model, IDS), logits(model, OTHER)]
    routed.swap("expert-5", block(routed.model, 9))
    seen.append(logits(model, IDS))
    routed.swap("expert-5", block(routed.model, 5))
    if routed.gate is None:
        routed.weigh([1.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.5, 0.0])
        seen.append(logits(model, IDS))
        routed.weigh([0.5] * 8)
    else:
        with routed.given(active=[["expert-1", "expert-2", "expert-6"]]):
            seen.append(logits(model, IDS))
    return seen


def furthest(some: list[Tensor], others: list[Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(some, others, strict=True))


def compile_layers(model: nn.Module, backend: str) -> None:
    for layer in model.model.layers:
        layer.compile(backend=backend, fullgraph=True)


def layer_by_layer(name: str, backend: str = "eager", layers: int = 1) -> dict[str, float]:
    model = tiny_llama(num_hidden_layers=layers)
    bank = bank_of(model)
    with attached(model, bank, **asked(name, bank)) as routed:
        plain = served(model, routed)
        compile_layers(model, backend)
        found = served(model, routed)
        graphs = counters["stats"]["unique_graphs"]
        with torch.compiler.set_stance("fail_on_recompile"):
            again = served(model, routed)
    return {
        "error": furthest(plain, found),
        "second time": furthest(found, again),
        "moved": max(furthest(plain[:1], plain[2:3]), furthest(plain[:1], plain[3:])),
        "graphs": graphs,
    }


def gradients(name: str) -> dict[str, float]:
    model = tiny_llama(num_hidden_layers=1)
    bank = bank_of(model)
    arguments = asked(name, bank)
    gate, found = arguments["gate"], []
    with attached(model, bank, **arguments):
        for compiled in (False, True):
            if compiled:
                compile_layers(model, "aot_eager")
            gate.zero_grad()
            model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
            found.append([parameter.grad.clone() for parameter in gate.parameters()])
    size = max(float(grad.abs().max()) for grad in found[0])
    return {"error": furthest(*found) / size, "size": size, "graphs": counters["stats"]["unique_graphs"]}


def whole_model(name: str) -> dict[str, float]:
    model = tiny_llama(num_hidden_layers=1)
    bank = bank_of(model)
    with attached(model, bank, **asked(name, bank)) as routed:
        plain = served(model, routed)
        found = served(torch.compile(model, backend="eager"), routed)
    return {"error": furthest(plain, found), "graphs": counters["stats"]["unique_graphs"]}


def generation(name: str) -> dict[str, float]:
    model = tiny_llama(num_hidden_layers=1)
    bank = bank_of(model)
    wanted = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "max_new_tokens": 4, "eos_token_id": None}
    with attached(model, bank, **asked(name, bank)):
        plain = model.generate(**wanted, do_sample=False)
        compile_layers(model, "eager")
        found = model.generate(**wanted, do_sample=False)
    return {"error": float((plain != found).sum()), "graphs": counters["stats"]["unique_graphs"]}


def coming_and_going(name: str) -> dict[str, float]:
    model = tiny_llama(num_hidden_layers=1)
    bank = bank_of(model)
    with attached(model, bank, **asked(name, bank)):
        plain = logits(model, IDS)
    compile_layers(model, "eager")
    base = logits(model, IDS)
    with attached(model, bank, **asked(name, bank)):
        inside = logits(model, IDS)
    return {
        "error": furthest([base, inside], [logits(model, IDS), plain]),
        "moved": furthest([base], [inside]),
        "graphs": counters["stats"]["unique_graphs"],
    }


CASES = {
    **{f"layers, {name}": (layer_by_layer, (name,)) for name in SERVED if name != "layer by prefix"},
    "two layers": (layer_by_layer, ("layer by prefix", "eager", 2)),
    "gradients, site by token": (gradients, ("site by token",)),
    "coming and going": (coming_and_going, ("fixed weights",)),
}
SLOW = {
    "gradients, context by token": (gradients, ("context by token",)),
    "whole": (whole_model, ("context by token",)),
    "generation": (generation, ("layer by prefix",)),
    "inductor": (layer_by_layer, ("site by token", "inductor")),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    results = {}
    for case in sys.argv[1:]:
        torch._dynamo.reset()
        counters.clear()
        run, arguments = (CASES | SLOW)[case]
        results[case] = run(*arguments) | {"breaks": sum(counters["graph_break"].values())}
    print(json.dumps(results))
