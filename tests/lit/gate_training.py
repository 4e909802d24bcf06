"""Training a gate in any number of processes: as a module for the test, and as a script that each process runs."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from pmemx.core.bank import ExpertBank
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.encoding import Encoded
from pmemx.gate.sequence import SequenceGate
from pmemx.lit.fit import fit
from pmemx.lit.gate_module import GateLosses, GateModule, MixtureStream, Source
from pmemx.lit.settings import TrainerSettings
from pmemx.lit.stream import StreamModule
from pmemx.runtime.attach import attached
from pmemx.select.softmax import Softmax


class Watched(MixtureStream):
    """Remembers which batches were asked for."""

    def at(self, step):
        self.asked = [*getattr(self, "asked", ()), step]
        return super().at(step)


def train(*, devices: int, accumulate: int, joined: int = 1, dropout: float):
    """Six steps of a gate over three experts; its weights, the losses reported, and the batches this process asked for.

    joined: how many batches are one. Answers are of one length, so that a mean over tokens is a mean over rows.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=29, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    base = LlamaForCausalLM(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    factors = [
        {
            "model.layers.0.mlp.up_proj": LoraFactors(
                torch.randn(2, 16, generator=generator), torch.randn(24, 2, generator=generator), 0.5
            )
        }
        for _ in range(3)
    ]
    bank = ExpertBank([CapabilityBlock(BlockCard(f"e{i}", "d", ""), expert) for i, expert in enumerate(factors)])

    def rows(size: int) -> tuple[Encoded, ...]:
        lengths = [3 + i % 3 for i in range(size)]
        return tuple(
            Encoded(tuple(torch.randint(3, 29, (length + 4,), generator=generator).tolist()), length)
            for length in lengths
        )

    sources = [Source(rows(10), choice, 2 * joined) for choice in range(4)]
    stream = Watched(sources, pad=0, seed=5)
    settings = TrainerSettings(
        steps=6,
        lr=1e-2,
        warmup=2,
        accumulate=accumulate,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
    )
    gate = SequenceGate(bank.shape(16), filters=16, dropout=dropout)
    reported: list[float] = []
    with attached(base, bank, gate=gate, select=Softmax()) as routed:
        steps = fit(
            GateModule(routed, gate, GateLosses(), settings),
            StreamModule(stream),
            settings,
            seed=3,
            folder=Path("unused"),
            on_step=lambda step, values: reported.append(values["train/loss"]),
        )
    assert steps == 6
    return {name: p.detach().clone() for name, p in gate.named_parameters()}, reported, stream.asked


if __name__ == "__main__":
    torch.set_num_threads(1)
    for dropout in (0.0, 0.3):
        weights, reported, asked = train(devices=2, accumulate=1, dropout=dropout)
        rank = torch.distributed.get_rank()
        save_file(weights, Path(sys.argv[1]) / f"{dropout}-{rank}.safetensors")
        (Path(sys.argv[1]) / f"{dropout}-{rank}.json").write_text(json.dumps([reported, asked]))
