"""What the tracking gate costs per token, against the base alone and against a known choice: `python -m experiments.own_gate.cost`.

Engines take turns in one process; the figure is the median over rounds of a quotient of processor times. The model is a random
Llama of the shapes in experiments/benchmarks/engine, float32, one thread.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.benchmarks.engine.setting import QUICK, TARGETS, Setting
from experiments.benchmarks.engine.timing import interleaved
from pmemx.core.bank import ExpertBank
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.gate.oracle import OracleGate
from pmemx.gate.tracking import TrackingGate
from pmemx.runtime.attach import attach
from pmemx.select.top_k import TopK

TARGET = 1.15


def main() -> None:
    """Print a table and write cost.json beside this file, or where --out says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "cost.json")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="tiny shapes: whether it runs, not what it costs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    setting = QUICK if options.quick else Setting()
    rows = [row for experts in setting.trained for row in measured(setting, experts, options.rounds)]
    for row in rows:
        print(
            f"{row['operation']:>20} {row['experts']:>4} experts  {row['engine']:>9} / base {row['ratio']['median']:.3f}"
        )
    options.out.write_text(json.dumps({"target": TARGET, "rows": rows}, indent=1) + "\n", encoding="utf-8")


@torch.inference_mode()
def measured(setting: Setting, experts: int, rounds: int) -> list[dict[str, object]]:
    """Reading a batch of prompts, and generating after one prompt a row."""
    rows = []
    engines = {"base": None, "oracle": "oracle", "tracking": "tracking"}
    models = {name: _model(setting) for name in engines}
    with ExitStack() as entered:
        prompts = torch.randint(3, setting.vocab, (setting.batch, setting.tokens), generator=_drawn(1))
        for name in ("oracle", "tracking"):
            bank = _bank(setting, experts, models[name])
            shape = bank.shape(setting.hidden)
            gate = OracleGate(shape) if name == "oracle" else _tracking(setting, shape, models[name], prompts)
            routed = attach(models[name], bank, gate=gate.eval(), select=TopK(k=1))
            entered.callback(routed.detach)
            if name == "oracle":
                domain = 1 + torch.arange(setting.batch) % experts
                entered.enter_context(routed.given(domain=domain))
        short = prompts[:, : setting.prompt]
        for operation, run, times in (
            ("prefill", lambda model: model(input_ids=prompts, use_cache=False), rounds),
            ("generate", lambda model: _generate(model, short, setting.new), rounds),
        ):
            parts = {name: _part(run, model) for name, model in models.items()}
            taken = interleaved(parts, times)
            for name in ("oracle", "tracking"):
                ratio = taken.processor_ratio(name, "base")
                rows.append({"operation": operation, "experts": experts, "engine": name, "ratio": asdict(ratio)})
    return rows


def _part(run: Callable[[LlamaForCausalLM], object], model: LlamaForCausalLM) -> Callable[[], object]:
    return lambda: run(model)


def _generate(model: LlamaForCausalLM, ids: Tensor, new: int) -> Tensor:
    mask = torch.ones_like(ids)
    return model.generate(
        ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
    )  # type: ignore[operator,return-value]


def _drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _model(setting: Setting) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=setting.vocab,
        hidden_size=setting.hidden,
        intermediate_size=setting.intermediate,
        num_hidden_layers=setting.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def _bank(setting: Setting, experts: int, model: LlamaForCausalLM) -> ExpertBank:
    sites = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in TARGETS
    }
    generator = _drawn(2)
    blocks = []
    for number in range(experts):
        factors = {
            name: LoraFactors(
                torch.randn(setting.rank, module.in_features, generator=generator) * 0.02,
                torch.randn(module.out_features, setting.rank, generator=generator) * 0.02,
                2.0,
            )
            for name, module in sites.items()
        }
        blocks.append(CapabilityBlock(BlockCard(name=f"e{number}", domain="", base=""), factors))
    return ExpertBank(blocks)


def _tracking(setting: Setting, shape, model: LlamaForCausalLM, prompts: Tensor) -> TrackingGate:
    """With a detector for every expert; the rows of the batch are examples of experts in turn, so that experts are chosen."""
    gate = TrackingGate(shape)
    embedding = model.get_input_embeddings()
    experts = len(shape.experts)

    def note(ids: Tensor, choice: int) -> None:
        hidden = embedding(ids)
        seen = torch.cat([hidden.new_zeros(ids.shape[0], gate.reach, hidden.shape[2]), hidden], dim=1)
        gate.note(seen, torch.ones_like(ids, dtype=torch.bool), torch.full((len(ids),), choice))

    note(torch.randint(3, setting.vocab, (8, setting.tokens), generator=_drawn(3)), 0)
    for number in range(experts):
        own = prompts[number % len(prompts)][None] if number < len(prompts) else None
        drawn = torch.randint(3, setting.vocab, (1, setting.tokens), generator=_drawn(10 + number))
        note(drawn if own is None else own, number + 1)
    gate.fit()
    return gate


if __name__ == "__main__":
    main()
