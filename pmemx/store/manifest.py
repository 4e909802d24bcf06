"""The manifest of a stored block: its card, its sites, and the digest of its weights, as canonical JSON."""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pmemx.core.canonical import canonical_json
from pmemx.core.card import BlockCard
from pmemx.core.card_json import FIELDS, card_from, card_values
from pmemx.core.errors import ConfigError, CorruptBlock

FORMAT = 2
"""1 kept what the card does not know under "extra"; 2 keeps it beside the fields."""


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

        Raises TypeError when the card holds something that is no JSON type, ConfigError when it holds text that is no
        Unicode, or a number that JSON does not have.
        """
        card = card_values(self.card)
        # A string, because canonical JSON sorts keys and the first matching pattern of a config wins.
        card["peft_config"] = json.dumps(card["peft_config"])
        sites = [asdict(site) for site in self.sites]
        weights = {"sha256": self.weights, "size": self.size}
        text = canonical_json({"format": FORMAT, "kind": "lora", "card": card, "sites": sites, "weights": weights})
        try:
            json.loads(text, parse_constant=_refuse)
            return text.encode()
        except ValueError as error:  # UnicodeEncodeError is one
            raise ConfigError(f"the card of {self.card.name!r} cannot be kept as JSON ({error}); mend it") from error

    @property
    def digest(self) -> str:
        """sha-256 of the encoded manifest: the digest of the version."""
        return hashlib.sha256(self.encode()).hexdigest()

    @property
    def rank(self) -> int:
        """The largest rank of any site."""
        return max((site.rank for site in self.sites), default=0)

    @staticmethod
    def decode(data: bytes) -> "Manifest":
        """Raises CorruptBlock when the bytes are no manifest of a format that this version reads."""
        try:
            value: Mapping[str, Any] = json.loads(data, parse_constant=_refuse)
            if value["format"] not in (1, FORMAT):
                raise CorruptBlock(f"its format is {value['format']!r}, this pmemx reads up to {FORMAT}; upgrade pmemx")
            card = dict(value["card"])
            if value["format"] == 1:
                card |= _extra_of_format_1(card.pop("extra"))
            card["peft_config"] = json.loads(card["peft_config"])
            sites = tuple(_site(site) for site in value["sites"])
            if len({site.name for site in sites}) < len(sites):
                raise ValueError("a site stands there twice")
            weights = value["weights"]
            _check(isinstance(weights["sha256"], str) and _is_count(weights["size"], 2**63), weights)
            return Manifest(card_from(card), sites, weights["sha256"], weights["size"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfigError) as error:
            raise CorruptBlock(f"it is no manifest ({error!r}); restore it from a copy of the bank") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _extra_of_format_1(extra: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a card had aside under the name of a field of today was no such field, and stays aside."""
    aside = {key: value for key, value in extra.items() if key in FIELDS}
    free = {key: value for key, value in extra.items() if key not in FIELDS}
    return free | {"extra_of_format_1": aside} if aside else free


def _site(value: Mapping[str, Any]) -> Site:
    widths = (value["rank"], value["width_in"], value["width_out"])
    _check(isinstance(value["name"], str) and all(_is_count(width, 2**31) for width in widths), value)
    _check(isinstance(value["scale"], int | float) and abs(value["scale"]) <= sys.float_info.max, value)
    return Site(**value)


def _is_count(value: object, below: int) -> bool:
    return isinstance(value, int) and 0 <= value < below


def _check(fits: bool, value: object) -> None:
    if not fits:
        raise ValueError(f"{value!r:.80} has a value of another type or size than it may have")
