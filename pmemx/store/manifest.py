"""The manifest of a stored block: its card, its sites, and the digest of its weights, as canonical JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pmemx.core.canonical import canonical_json, plain
from pmemx.core.card import BlockCard
from pmemx.core.errors import CorruptBlock

FORMAT = 1


@dataclass(frozen=True)
class Site:
    """What the weights hold at one site; the scale is here alone."""

    name: str
    rank: int
    width_in: int
    width_out: int
    scale: float


@dataclass(frozen=True)
class Manifest:
    """All of a block but its tensors; `weights` is the sha-256 of those, `size` their number of bytes."""

    card: BlockCard
    sites: tuple[Site, ...]
    weights: str
    size: int

    def encode(self) -> bytes:
        """Equal manifests give equal bytes. The order of sites is kept, and so is that of the PEFT config.

        Raises TypeError when the card holds something that is no JSON type.
        """
        card = {field.name: getattr(self.card, field.name) for field in fields(BlockCard)}
        # A string, because canonical JSON sorts keys and the first matching pattern of a config wins.
        card["peft_config"] = json.dumps(plain(self.card.peft_config))
        sites = [{field.name: getattr(site, field.name) for field in fields(Site)} for site in self.sites]
        weights = {"sha256": self.weights, "size": self.size}
        return canonical_json(
            {"format": FORMAT, "kind": "lora", "card": card, "sites": sites, "weights": weights}
        ).encode()

    @staticmethod
    def decode(data: bytes) -> "Manifest":
        """Raises CorruptBlock when the bytes are no manifest of a format that this version reads."""
        try:
            value: Mapping[str, Any] = json.loads(data)
            if value["format"] != FORMAT:
                raise CorruptBlock(f"its format is {value['format']!r}, this pmemx reads {FORMAT}; upgrade pmemx")
            card = dict(value["card"])
            card |= {"parents": tuple(card["parents"]), "peft_config": json.loads(card["peft_config"])}
            sites = tuple(Site(**site) for site in value["sites"])
            return Manifest(BlockCard(**card), sites, value["weights"]["sha256"], value["weights"]["size"])
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptBlock(f"it is no manifest ({error!r}); restore it from a copy of the store") from error
