"""What produced an answer: which versions of which blocks, with which weights, under an id that travels with the answer.

Row G5 of the promises: an id that never changes, and that tells which version of which block spoke; imports no torch.
"""

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pmemx.core.canonical import canonical_json, digest
from pmemx.core.errors import ConfigError, CorruptBlock

DECIMALS = 6
"""To how many decimals weights are kept: sums that differ in their last bits give one id, but for those at an edge."""


@dataclass(frozen=True, order=True)
class Share:
    """A block's part in an answer.

    block: the name it was served under. version: digest of the version that was loaded. weight: its mean routing weight
    over the decisions of the answer; below 0 where a profile subtracts it.
    """

    block: str
    version: str
    weight: float


@dataclass(frozen=True)
class Provenance:
    """Equal inputs and equal state give equal provenances; two prompts, or two answers, never do.

    base: fingerprint of the base model. gate: its digest or name, selection: canonical JSON of what made weights of its
    scores. Where fixed weights stood in place of a gate, gate is empty, and selection is canonical JSON of the profile that
    gave them, or empty. shares: by block; what rounds to no weight is left out. prompt, answer: digests of the token ids.
    """

    base: str
    gate: str
    selection: str
    shares: tuple[Share, ...]
    prompt: str
    answer: str

    def __post_init__(self) -> None:
        for share in self.shares:
            if not math.isfinite(share.weight):
                raise ConfigError(
                    f"block {share.block!r} has the weight {share.weight} in an answer; it must be finite"
                )
            if not share.version:
                raise ConfigError(f"block {share.block!r} has a share in an answer, but no version; give its digest")
        rounded = (Share(share.block, share.version, round(float(share.weight), DECIMALS)) for share in self.shares)
        shares = tuple(sorted(share for share in rounded if share.weight))
        for one, next_one in pairwise(shares):
            if one.block == next_one.block:
                raise ConfigError(f"block {one.block!r} has two shares in one answer; add them up, or name them apart")
        object.__setattr__(self, "shares", shares)

    @property
    def nothing(self) -> float:
        """Weight of "no expert": what the shares lack to 1, and 0 where fixed weights sum to more."""
        return max(0.0, round(1.0 - sum(share.weight for share in self.shares), DECIMALS))

    @property
    def id(self) -> str:
        """sha-256 of the canonical JSON: whoever knows the id can tell whether a provenance is the one it stands for."""
        return digest(self.values())

    def values(self) -> dict[str, Any]:
        """In JSON types."""
        shares = [{"block": share.block, "version": share.version, "weight": share.weight} for share in self.shares]
        return {
            "base": self.base,
            "gate": self.gate,
            "selection": self.selection,
            "shares": shares,
            "nothing": self.nothing,
            "prompt": self.prompt,
            "answer": self.answer,
        }

    def to_json(self) -> str:
        """Canonical JSON."""
        return canonical_json(self.values())

    @staticmethod
    def from_json(text: str) -> "Provenance":
        """The provenance that `to_json` wrote. Raises CorruptBlock when the text is none, or was edited into another form."""
        try:
            found = json.loads(text)
            shares = tuple(
                Share(str(share["block"]), str(share["version"]), share["weight"]) for share in found["shares"]
            )
            words = {name: str(found[name]) for name in ("base", "gate", "selection", "prompt", "answer")}
            made = Provenance(shares=shares, **words)
            if made.values() == found:
                return made
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError, ConfigError) as error:
            raise CorruptBlock(f"{text[:60]!r} is no provenance ({error!r}); ask the bank for it by its id") from error
        raise CorruptBlock(f"{text[:60]!r} is no provenance as pmemx writes it; ask the bank for it by its id")
