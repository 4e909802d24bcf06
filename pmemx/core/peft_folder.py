"""Read and write the folder in which PEFT keeps a LoRA adapter, bit for bit; nothing is ever unpickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pmemx.core.atomic import write_whole
from pmemx.core.block import CapabilityBlock, LoraFactors
from pmemx.core.card import Origin
from pmemx.core.card_json import card_from, card_values
from pmemx.core.errors import ConfigError, CorruptBlock, IncompatibleBlock, UnsupportedAdapter
from pmemx.core.factor_file import FactorFile, pack, unpack
from pmemx.core.peft_config import adapted_sites, generated_config, rank_and_scale, refusals

CONFIG, WEIGHTS, PASSPORT = "adapter_config.json", "adapter_model.safetensors", "pmemx.json"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# PEFT saves these unasked when the head is adapted or the vocabulary has another size than the checkpoint's.
_COPIES = ("embed_tokens.weight", "lm_head.weight", "lm_head.base_layer.weight")


def linear_widths(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Input and output width of every linear layer of a model, by name."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {name: (layer.in_features, layer.out_features) for name, layer in layers.items()}


def read_peft_folder(
    path: Path,
    *,
    name: str = "",
    domain: str = "",
    base: str = "",
    base_name: str = "",
    widths: Mapping[str, tuple[int, int]] | None = None,
) -> CapabilityBlock:
    """The block of an adapter folder: A and B as stored, scales as PEFT computes them, its config kept verbatim.

    name, domain and base_name, where empty, come from the folder's passport (left by write_peft_folder), its config, or
    its own name. base is the fingerprint of the model that it will serve. widths, as linear_widths gives them, let a
    tensor that is missing altogether or has another model's shape be noticed.

    Raises UnsupportedAdapter with every reason why the adapter is not low-rank factors alone or not whole,
    IncompatibleBlock if its passport names another base, CorruptBlock if a file cannot be read.
    """
    config = _read_config(path)
    reasons = refusals(config)
    if (path / WEIGHTS).is_file():
        try:
            file = unpack((path / WEIGHTS).read_bytes())
        except CorruptBlock as error:
            raise CorruptBlock(f"{path / WEIGHTS}: {error}") from error
        reasons += _leftovers(file) + ([] if reasons else _misfits(config, file, widths))
    else:
        file = FactorFile({}, {})
        reasons.append(_no_weights(path))
    factors: dict[str, LoraFactors] = {}
    for site, pair in sorted(file.sites.items()) if not reasons else ():
        try:
            factors[site] = LoraFactors(pair["A"], pair["B"], float(rank_and_scale(config, site)[1]))
        except CorruptBlock as error:
            reasons.append(f"{site}: {error}")
    if reasons:
        raise UnsupportedAdapter("\n  - ".join([f"{path} cannot be imported:", *reasons]))
    passport = _read_json(path / PASSPORT) if (path / PASSPORT).is_file() else {}
    claimed = str(passport.get("base", ""))
    if base and claimed and claimed != base:
        raise IncompatibleBlock(
            f"{path} was made on base {claimed[:12]} ({passport.get('base_name')}), not on {base[:12]} ({base_name}); "
            "load the base that it was made on, or distil it again on this one"
        )
    told = {
        "name": name or passport.get("name") or path.resolve().name,
        "domain": domain or passport.get("domain") or name or path.resolve().name,
        "base": base or claimed,
        "base_name": base_name or passport.get("base_name") or config.get("base_model_name_or_path") or "",
        "made_by": passport.get("made_by") or f"peft {config.get('peft_version') or ''}".strip(),
        "origin": passport.get("origin") or Origin.IMPORTED.value,
        "peft_config": config,
    }
    try:
        card = card_from(passport | told)
    except (TypeError, ConfigError) as error:
        raise CorruptBlock(f"{path / PASSPORT} is no passport ({error}); fetch or write the folder again") from error
    return CapabilityBlock(card, factors)


def write_peft_folder(block: CapabilityBlock, path: Path) -> Path:
    """Write a block as an adapter folder that PEFT loads, with a small passport beside PEFT's two files.

    A block that came from PEFT gives back the bytes of both. Raises IncompatibleBlock when the card's config does not
    describe the factors.
    """
    sites = {site: (factors.rank, factors.scale) for site, factors in block.factors.items()}
    config = block.card.peft_config or generated_config(sites, base_name=block.card.base_name)
    wrong = [site for site in sites if block.card.peft_config and rank_and_scale(config, site) != sites[site]]
    if wrong:
        raise IncompatibleBlock(
            f"the PEFT config of block {block.card.name!r} gives {wrong[0]!r} rank and scale "
            f"{rank_and_scale(config, wrong[0])}, but its factors have {sites[wrong[0]]}; clear card.peft_config"
        )
    passport = {field: value for field, value in card_values(block.card).items() if field != "peft_config"}
    path.mkdir(parents=True, exist_ok=True)
    write_whole(path / WEIGHTS, pack(block.factors))
    write_whole(path / PASSPORT, json.dumps(passport, indent=2, ensure_ascii=False).encode())
    # PEFT's own way of writing; last, since a folder without a config is no adapter.
    write_whole(path / CONFIG, json.dumps(dict(config), indent=2).encode())
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise CorruptBlock(f"{path} is not JSON ({error}); fetch or write the folder again") from error
    if not isinstance(value, dict):
        raise CorruptBlock(f"{path} holds a {type(value).__name__}, not an object; fetch or write the folder again")
    return value


def _read_config(path: Path) -> dict[str, Any]:
    if not (path / CONFIG).is_file():
        inside = sorted(config.parent.name for config in path.glob(f"*/{CONFIG}"))
        hint = f"name one of its folders: {', '.join(inside)}" if inside else "give the folder that PEFT saved"
        raise UnsupportedAdapter(f"{path} has no {CONFIG}; {hint}")
    return _read_json(path / CONFIG)


def _no_weights(path: Path) -> str:
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"))
    if not pickles:
        return f"there is no {WEIGHTS}; save the adapter again, or fetch the whole folder"
    return (
        f"its weights are a pickle ({', '.join(pickles)}), which may run code and is not opened; load it with PEFT where "
        "you trust it and call save_pretrained, which writes safetensors"
    )


def _leftovers(file: FactorFile) -> list[str]:
    if not file.others:
        return []
    shown = ", ".join(list(file.others)[:4]) + (", ..." if len(file.others) > 4 else "")
    meaning = "tensors that are no A or B of a linear layer"
    if any("lora_embedding" in name for name in file.others):
        meaning = "adapted embeddings, which no linear layer can carry; retrain without embeddings in target_modules"
    elif any("lora_magnitude" in name for name in file.others):
        meaning = "DoRA magnitudes; retrain with use_dora=False"
    elif all(name.endswith(_COPIES) for name in file.others):
        meaning = "embeddings or head of the base; if they are unchanged, save again with save_embedding_layers=False"
    return [f"{len(file.others)} tensors are left over ({shown}): {meaning}"]


def _misfits(config: Mapping[str, Any], file: FactorFile, widths: Mapping[str, tuple[int, int]] | None) -> list[str]:
    if not file.sites:
        return ["it holds no A and B at all; save the adapter again, under a name that is no part of a module's name"]
    reasons = [reason for site, pair in sorted(file.sites.items()) for reason in _misfit(config, site, pair)]
    if widths is None or reasons:
        return reasons
    for site in sorted(adapted_sites(config, widths) - file.sites.keys()):
        reasons.append(f"{site} is adapted by the config but has no tensors; save the adapter again")
    for site, pair in sorted(file.sites.items()):
        found = (pair["A"].shape[1], pair["B"].shape[0])
        if site not in widths:
            reasons.append(f"{site} is no linear layer of the base; choose the base that it was trained on")
        elif found != widths[site]:
            reasons.append(f"{site} maps {found[0]} to {found[1]}, but in the base {widths[site]}; choose its own base")
    return reasons


def _misfit(config: Mapping[str, Any], site: str, pair: Mapping[str, Tensor]) -> list[str]:
    if missing := {"A", "B"} - pair.keys():
        return [f"{site} has no {missing.pop()}; save the adapter again"]
    A, B = pair["A"], pair["B"]
    rank, _ = rank_and_scale(config, site)
    flat = A.ndim == 2 and B.ndim == 2
    if flat and A.shape[0] == rank == B.shape[1] and A.dtype in _FLOATS and B.dtype in _FLOATS:
        return []
    if flat and A.shape[0] == rank == B.shape[1]:
        return [f"{site} is stored as {A.dtype}, {B.dtype}; save it as float32, float16 or bfloat16"]
    shapes = f"{site} has A of shape {tuple(A.shape)} and B of shape {tuple(B.shape)}"
    if not flat:
        return [f"{shapes}: no linear layer (a convolution?); retrain with linear target_modules"]
    return [f"{shapes}, but its config says rank {rank}; find the config that belongs to it"]
