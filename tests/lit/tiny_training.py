"""A training run small enough to kill: as a module for the test, and as a script that dies at a step."""

import os
import signal
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pmemx.adapter.lora import Lora
from pmemx.core.distill import Locality
from pmemx.core.encoding import Encoded
from pmemx.distill.context import ContextKL
from pmemx.lit.expert import ExpertModule
from pmemx.lit.fit import fit
from pmemx.lit.settings import TrainerSettings
from pmemx.lit.stream import Row, StreamModule, TransferStream
from pmemx.lit.transfer import teach


def train(folder: Path, *, resume: bool = False, die_at: int = 0, accumulate: int = 1) -> dict[str, torch.Tensor]:
    """Twelve steps of a LoRA with dropout; returns its weights. die_at kills the process without a word."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=29, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
    )
    base = LlamaForCausalLM(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    rows = [Encoded(tuple(torch.randint(3, 29, (7 + i % 3,), generator=generator).tolist()), 3) for i in range(20)]
    taught = [
        Row(row, target) for row, target in zip(rows, teach(base, rows[::-1], 0, hidden=False)[::-1], strict=True)
    ]
    anchors = [Row(row, target) for row, target in zip(rows, teach(base, rows, 0, hidden=False), strict=True)]
    student = Lora(rank=2, dropout=0.3).inject(base, seed=0)
    settings = TrainerSettings(
        steps=12,
        batch_size=3,
        lr=1e-2,
        warmup=2,
        schedule="cosine",
        checkpoint_every=2,
        resume=resume,
        accumulate=accumulate,
    )
    stream = TransferStream(taught, anchors, batch_size=3, anchor_size=2, pad=0, seed=5)

    def on_step(step: int, values: dict[str, float]) -> None:
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    module = ExpertModule(student, ContextKL(), Locality(), settings)
    steps = fit(module, StreamModule(stream), settings, seed=3, folder=folder, on_step=on_step)
    assert steps == 12
    return {name: p.detach().clone() for name, p in student.named_parameters() if p.requires_grad}


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]), die_at=int(sys.argv[2]), accumulate=int(sys.argv[3]))
