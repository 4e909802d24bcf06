"""The digest of settings, texts and weights."""

import hashlib

import torch
from torch import nn

from pmemx.core.canonical import canonical_json, digest, plain

__all__ = ["canonical_json", "digest", "fingerprint", "plain"]


def fingerprint(model: nn.Module, *, samples: int = 4096) -> str:
    """Identity of a base model's weights, as 64 hex digits.

    Hashes name, shape and up to `samples` evenly spaced entries of every parameter, rounded to bfloat16, so that
    one checkpoint loaded in float32 and in bfloat16 has one fingerprint and a fine-tuned copy of the same shapes has another.
    Raises ValueError if the model has an adapter injected: the identity is the base's alone.
    """
    hasher = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            raise ValueError(f"parameter {name!r} belongs to an adapter; take the fingerprint before injecting one")
        flat = parameter.detach().reshape(-1)
        stride = max(1, flat.numel() // samples)
        sample = flat[::stride].to(device="cpu", dtype=torch.bfloat16).view(torch.int16).numpy()
        hasher.update(f"{name}{tuple(parameter.shape)}".encode())
        hasher.update(sample.tobytes())
    return hasher.hexdigest()
