"""The digest of the program itself: what was computed by another one is computed again."""

import hashlib
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def source_digest() -> str:
    """SHA-256 of all modules of the package by their paths, as 64 hex digits."""
    root = Path(__file__).parents[1]
    hasher = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        text = path.read_bytes()
        # With its length, so that no name can be read as the end of the text before it.
        hasher.update(f"{path.relative_to(root).as_posix()}\0{len(text)}\0".encode())
        hasher.update(text)
    return hasher.hexdigest()
