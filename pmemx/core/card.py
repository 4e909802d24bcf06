"""What a block is and where it comes from, readable without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class BlockCard:
    """What a block is, where it comes from, and how it scored.

    name: free text. domain: what it was distilled from. base: fingerprint of the base model's weights, empty when
    unknown. parents: digests of the versions it was made from. recipe: settings, seeds and digests of the run that made it.
    metrics: scores at the time of making. peft_config: the adapter's PEFT config verbatim, so that an export is bit-exact.
    extra: anything else; survives a round trip untouched.
    """

    name: str
    domain: str
    base: str
    base_name: str = ""
    licence: str = ""
    made_by: str = ""
    created: str = ""
    parents: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    peft_config: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Version:
    """One immutable version: digest identifies its bytes; number counts 1, 2, ... under its name.

    restores: the number of the earlier version whose bytes a rollback made the latest again, None for any other version.
    """

    name: str
    number: int
    digest: str
    card: BlockCard
    restores: int | None = None
