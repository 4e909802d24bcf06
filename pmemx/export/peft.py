"""Adapter folders for PEFT and whatever reads its format: vLLM, LoRAX, llama.cpp's converter."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from pmemx.core.atomic import write_whole
from pmemx.core.block import CapabilityBlock, LoraFactors
from pmemx.core.card import Version
from pmemx.core.errors import ConfigError, CorruptBlock, IncompatibleBlock
from pmemx.core.exporter import Exporter
from pmemx.core.peft_config import generated_config
from pmemx.core.peft_folder import read_peft_folder, write_peft_folder
from pmemx.core.redaction import is_redacted

INDEX, VERSION = "index.json", "pmemx_version.json"


@dataclass(frozen=True)
class PeftExport(Exporter):
    """One folder a block, and an index.json from names to folders, over all that exports left in the place.

    Where versions are given, the index and a pmemx_version.json in each folder tell the number and the digest of each.

    portable writes the normal form: scale folded into B, alpha = r, one rank for all sites, no rsLoRA and no patterns.
    llama.cpp's converter and LoRAX ignore rsLoRA and patterns without a word; this form is right there too.
    """

    portable: bool = False

    def export(
        self, blocks: Sequence[CapabilityBlock], folder: Path, *, versions: Sequence[Version] = ()
    ) -> list[Path]:
        """See Exporter.export; every folder is read back and compared before the index is written.

        A block goes by its name in the bank. Raises ConfigError, before anything is written, where the folder holds a block
        of that name and of another namespace, and CorruptBlock for an index that cannot be read.
        """
        told = [told_of(version) for version in versions] or [{} for _ in blocks]
        names = [version.name for version in versions] or [block.card.name for block in blocks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise IncompatibleBlock(
                f"blocks of one name cannot share an export ({', '.join(twice)}); export each into a folder of its own"
            )
        index = _read_index(folder)
        for name, about in zip(names, told, strict=True):
            _check_same_block(folder, name, index.get(name, {}), about)
        paths = []
        for name, block, about in zip(names, blocks, told, strict=True):
            path = self._write(block, folder / folder_name(name))
            write_told(path, about)
            index[name] = {"folder": path.name, "base": block.card.base, "base_name": block.card.base_name, **about}
            paths.append(path)
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


def told_of(version: Version) -> dict[str, Any]:
    """What an exported folder tells of its version; of a redacted one no namespace, which names a person or a team."""
    about: dict[str, Any] = {} if is_redacted(version.card) else {"namespace": version.namespace}
    return about | {"version": version.number, "digest": version.digest}


def write_told(path: Path, about: Mapping[str, Any]) -> None:
    """Tell in an adapter folder which version it holds; what stood there of another one goes."""
    if about:
        write_whole(path / VERSION, json.dumps(about, indent=2, ensure_ascii=False).encode())
    else:
        (path / VERSION).unlink(missing_ok=True)


def _read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """What earlier exports left in a folder and is still there."""
    path = folder / INDEX
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_bytes())
        return {name: entry for name, entry in found.items() if (folder / entry["folder"]).is_dir()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptBlock(
            f"{path} is no index of an export ({error!r:.100}); move it away, or export into another folder"
        ) from error


def _check_same_block(folder: Path, name: str, before: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    if "digest" in before and about and before.get("namespace") != about.get("namespace"):
        spaces = [one.get("namespace", "a namespace that redaction hides") for one in (before, about)]
        raise ConfigError(
            f"{folder} holds block {name!r} of {spaces[0]} already, and this one is of {spaces[1]}; export into another folder"
        )


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
