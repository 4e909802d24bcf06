"""Banks of many small blocks, made quickly: objects first, then commits in a few transactions."""

import hashlib
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pmemx.core.card import BlockCard
from pmemx.store import changes
from pmemx.store.bank import Bank
from pmemx.store.manifest import Manifest, Site
from pmemx.store.references import Name

LAYERS = 4
DOMAINS = 100
TEAMS = 7
SITES = tuple(Site(f"model.layers.{layer}.self_attn.q_proj", 8, 64, 64, 2.0) for layer in range(LAYERS))
RECIPE = {
    "stage": {"lr": 0.001, "steps": 100, "batch": 16, "warmup": 0.1, "seed": 0, "dtype": "float32"},
    "data": {"name": "procedural", "digest": "d" * 64, "passages": 200, "length": 128},
    "versions": {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2", "pmemx": "0.1.0"},
}
CONFIG = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "bias": "none",
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"], "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {},
}  # fmt: skip


def name(number: int) -> str:
    """What a block is called."""
    return f"block {number:05}"


def block(number: int, version: int = 0) -> tuple[Manifest, bytes]:
    """A manifest with a card as a run writes it, and weights of half a kilobyte, of no meaning."""
    weights = random.Random(f"{number} {version}").randbytes(512)
    card = BlockCard(
        name(number), f"domain {number % DOMAINS:03}", "b" * 64, base_name="tiny-llama", licence="CC0-1.0",
        made_by="pmemx", created="2026-11-22T00:00:00+00:00", origin="fine_tuned", recipe=RECIPE | {"block": number},
        metrics={"exact": 0.5, "loss": 1.25}, peft_config=CONFIG, extra={"team": f"team {number % TEAMS}"},
    )  # fmt: skip
    return Manifest(card, SITES, hashlib.sha256(weights).hexdigest(), len(weights)), weights


def grow(bank: Bank, sizes: Sequence[int]) -> Iterator[int]:
    """Commit blocks in an order that is not that of their names, a third of them with a tag; stops at each size."""
    begin = 0
    for size in sizes:
        made = [(number, *block(number)) for number in range(begin, size)]
        random.Random(size).shuffle(made)
        for _, manifest, weights in made:
            bank.objects.put(weights)
            bank.objects.put(manifest.encode())
        with bank.transaction() as now:
            for number, manifest, _ in made:
                found = changes.commit(now, Name("shared", name(number)), manifest)
                if number % 3 == 0:
                    changes.tag(now, found, "stable")
        begin = size
        yield size


def copy(bank: Bank, folder: Path) -> Bank:
    """The same bank in another folder; its ledger must be in its own."""
    return replace(bank, path=shutil.copytree(bank.path, folder))
