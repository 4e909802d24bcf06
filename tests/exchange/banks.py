"""Small banks and blocks for the tests of exchanges."""

from dataclasses import replace
from pathlib import Path

import torch

from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.store.governed import GovernedStore

BASE = "b" * 64
SECRETS = {
    "made_by": "alice@laptop-7",
    "sources": ("mail-4711-from-carol",),
    "recipe": {"prompt": "the merger with Zenobia", "path": "/home/alice/zenobia.json"},
    "embedding": (0.25, 0.5, 0.25),
    "extra": {"ticket": "ZEN-1"},
    "peft_config": {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "/home/alice/models/tiny", "eva_config": {"cache": "/home/alice/cache"},
    },
}  # fmt: skip
"""What a card may hold that a redacted one must not."""
SIGNS = ("alice", "carol", "4711", "zenobia", "ZEN-1", "Zenobia", "merger", "0.25")
"""Strings of those, to be looked for in bytes."""


def block(name: str = "law", fill: float = 1.0, ranks: tuple[int, ...] = (2,), **card: object) -> CapabilityBlock:
    """A block with one site for every rank."""
    factors = {
        f"model.layers.{layer}.self_attn.q_proj": LoraFactors(
            torch.arange(rank * 3, dtype=torch.float32).reshape(rank, 3) + fill, torch.full((4, rank), -fill), 4 / rank
        )
        for layer, rank in enumerate(ranks)
    }
    return CapabilityBlock(replace(BlockCard(name, "law", BASE, base_name="owner/tiny"), **card), factors)


def store(path: Path, principal: str = "tester", **settings: str) -> GovernedStore:
    """A bank at a path."""
    return GovernedStore(path, principal=principal, **settings)


def snapshot(path: Path) -> dict[str, bytes]:
    """Every file below a path that is no lock or log of SQLite."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and not file.name.endswith(("-wal", "-shm"))
    }
