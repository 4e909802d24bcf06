"""Checkpoints without pickle, written whole or not at all: one safetensors file whose metadata holds the structure."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pmemx.core.atomic import write_whole
from pmemx.core.errors import CorruptBlock


class SafeCheckpointIO(CheckpointIO):
    """Nested dicts, lists, tuples, tensors and JSON values to and from one file.

    The file is written under a temporary name in the same folder, synced, renamed, and the folder synced, so that a
    kill or a full disk leaves the previous checkpoint as it was.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Raises TypeError on a value that is neither a tensor nor JSON."""
        tensors: dict[str, Tensor] = {}
        tree = json.dumps(_pack(checkpoint, tensors))
        data = save(tensors, metadata={"tree": tree, "sha256": _checksum(tree, tensors)})
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(path), data)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Raises CorruptBlock when the file is not what was saved."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise CorruptBlock(
                f"checkpoint {path} cannot be read ({error}); delete it to fall back to an earlier one"
            ) from error
        if metadata.get("sha256") != _checksum(metadata.get("tree", ""), tensors):
            raise CorruptBlock(f"checkpoint {path} is not what was saved; delete it to fall back to an earlier one")
        return _unpack(json.loads(metadata["tree"]), tensors)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Nothing happens when it is gone already."""
        Path(path).unlink(missing_ok=True)


def _checksum(tree: str, tensors: dict[str, Tensor]) -> str:
    hasher = hashlib.sha256(tree.encode())
    for name in sorted(tensors):
        hasher.update(name.encode())
        hasher.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Tensor():
            name = str(len(tensors))
            tensors[name] = value.detach().to("cpu", copy=True).contiguous()
            return {"tensor": name}
        case dict():
            # Pairs, because optimiser states have integer keys and JSON objects do not.
            return {"dict": [[_pack(key, tensors), _pack(item, tensors)] for key, item in value.items()]}
        case list():
            return [_pack(item, tensors) for item in value]
        case tuple():
            return {"tuple": [_pack(item, tensors) for item in value]}
        case Path():
            return str(value)
    raise TypeError(f"a checkpoint cannot hold {value!r} of type {type(value).__name__}; store tensors and JSON values")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    match value:
        case {"tensor": name}:
            return tensors[name]
        case {"dict": pairs}:
            return {_unpack(key, tensors): _unpack(item, tensors) for key, item in pairs}
        case {"tuple": items}:
            return tuple(_unpack(item, tensors) for item in items)
        case list():
            return [_unpack(item, tensors) for item in value]
    return value
