"""Adapter folders for PEFT and whatever reads its format: vLLM, LoRAX, llama.cpp's converter."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from pmemx.core.atomic import write_whole
from pmemx.core.block import CapabilityBlock, LoraFactors
from pmemx.core.errors import CorruptBlock, IncompatibleBlock
from pmemx.core.exporter import Exporter
from pmemx.core.peft_config import generated_config
from pmemx.core.peft_folder import read_peft_folder, write_peft_folder

INDEX = "index.json"


@dataclass(frozen=True)
class PeftExport(Exporter):
    """One folder a block, and an index.json from names to folders.

    portable writes the normal form: scale folded into B, alpha = r, one rank for all sites, no rsLoRA and no patterns.
    llama.cpp's converter and LoRAX ignore rsLoRA and patterns without a word; this form is right there too.
    """

    portable: bool = False

    def export(self, blocks: Sequence[CapabilityBlock], folder: Path) -> list[Path]:
        """See Exporter.export; every folder is read back and compared before the index is written."""
        names = [block.card.name for block in blocks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise IncompatibleBlock(f"blocks of one name cannot share an export ({', '.join(twice)}); rename one")
        paths = [self._write(block, folder / folder_name(block.card.name)) for block in blocks]
        index = {
            name: {"folder": path.name, "base": block.card.base, "base_name": block.card.base_name}
            for name, path, block in zip(names, paths, blocks, strict=True)
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / INDEX, json.dumps(index, indent=2, ensure_ascii=False).encode())
        return paths

    def _write(self, block: CapabilityBlock, path: Path) -> Path:
        block = portable(block) if self.portable else block
        written = read_peft_folder(write_peft_folder(block, path)).factors
        if written.keys() != block.factors.keys() or not all(_equal(written[s], f) for s, f in block.factors.items()):
            raise CorruptBlock(f"{path} reads back other tensors than were written; check the disk and export again")
        return path


def folder_name(name: str) -> str:
    """A folder name that is safe on every system, the same for the same name and different for different ones."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    return f"{slug or 'expert'}-{sha256(name.encode()).hexdigest()[:8]}"


def portable(block: CapabilityBlock) -> CapabilityBlock:
    """The block in normal form, with the config that says so.

    Where a factor of half precision cannot hold the scale exactly, that site becomes float32.
    """
    rank = max(factors.rank for factors in block.factors.values())
    factors = {site: _normal(factors, rank) for site, factors in block.factors.items()}
    config = generated_config(dict.fromkeys(factors, (rank, 1.0)), base_name=block.card.base_name)
    kept = {key: block.card.peft_config[key] for key in _KEPT if key in block.card.peft_config}
    return CapabilityBlock(replace(block.card, peft_config=config | kept), factors)


# Which sites are adapted, and what the base is called: the rest of a config describes how it was trained or scaled.
_KEPT = (
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "fan_in_fan_out",
    "layers_pattern",
    "layers_to_transform",
    "revision",
    "target_modules",
    "task_type",
)


def _normal(factors: LoraFactors, rank: int) -> LoraFactors:
    folded = factors.scale * factors.B.to(torch.promote_types(factors.B.dtype, torch.float32))
    A, B = factors.A, folded.to(factors.B.dtype)
    if not torch.equal(B.to(folded.dtype), folded):
        A, B = A.to(folded.dtype), folded
    missing = rank - factors.rank
    return LoraFactors(pad(A, (0, 0, 0, missing)), pad(B, (0, missing)), 1.0)


def _equal(one: LoraFactors, other: LoraFactors) -> bool:
    # alpha / r reaches most scales exactly, and every scale to one unit in its last place.
    return math.isclose(one.scale, other.scale, rel_tol=2**-52) and _same(one.A, other.A) and _same(one.B, other.B)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other.cpu())
