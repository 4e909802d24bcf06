"""Values as canonical JSON and its digest, so that equal work is recognised as equal; imports no torch."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path


def plain(value: object) -> object:
    """A value as JSON types: dataclasses become {"type": class, field: ...}, paths and tuples strings and lists.

    Raises TypeError for anything else, so that nothing enters a digest by its memory address.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        return {"type": kind} | {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    raise TypeError(f"{value!r} of type {type(value).__name__} has no canonical form; use a dataclass or JSON types")


def canonical_json(value: object) -> str:
    """Sorted, separator-free JSON of plain(value): equal values give equal bytes."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: object) -> str:
    """sha-256 of the canonical JSON, as 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
