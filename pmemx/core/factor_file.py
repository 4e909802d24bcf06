"""Factors as the bytes of a safetensors file under PEFT's keys, so that a stored blob is an adapter file as well."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from pmemx.core.block import LoraFactors
from pmemx.core.errors import CorruptBlock

_KEY = re.compile(r"base_model\.model\.(?P<site>.+)\.lora_(?P<factor>[AB])\.weight")


@dataclass(frozen=True, eq=False)
class FactorFile:
    """What a file holds: tensors by site and factor, and the tensors that are neither an A nor a B of a site."""

    sites: Mapping[str, Mapping[str, Tensor]]
    others: Mapping[str, Tensor]


def key(site: str, factor: Literal["A", "B"]) -> str:
    """The name under which PEFT saves a factor."""
    return f"base_model.model.{site}.lora_{factor}.weight"


def pack(factors: Mapping[str, LoraFactors]) -> bytes:
    """The bytes that PEFT writes for these factors: equal factors give equal bytes. Scales are not among them."""
    tensors = {key(site, "A"): item.A for site, item in factors.items()}
    tensors |= {key(site, "B"): item.B for site, item in factors.items()}
    # safetensors refuses views of one storage, which is what slices of a stacked bank are.
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return safetensors.torch.save(whole, metadata={"format": "pt"})


def unpack(data: bytes) -> FactorFile:
    """The tensors of a file. Raises CorruptBlock when the bytes are not one whole safetensors file."""
    try:
        tensors = safetensors.torch.load(data)
    # A KeyError: a type of number that torch has not; the last two: an empty tensor of a shape beyond all limits.
    except (SafetensorError, KeyError, RuntimeError, TypeError) as error:
        raise CorruptBlock(
            f"{len(data)} bytes are not a whole safetensors file ({error}); fetch or write it again"
        ) from error
    sites: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = _KEY.fullmatch(name)
        if match is None or "base_layer" in match["site"].split("."):
            others[name] = tensor
        else:
            sites.setdefault(match["site"], {})[match["factor"]] = tensor
    return FactorFile(sites, others)
