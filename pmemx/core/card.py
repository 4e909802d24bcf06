"""What a block is and where it comes from, readable without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from pmemx.core.errors import ConfigError

LONGEST = 1e11
"""Seconds that a card may ask for, some 3000 years: whatever is added to today is still a date."""
HIGHEST_PRIORITY = 2**31 - 1


class SemanticType(StrEnum):
    """What kind of thing a block remembers."""

    FACT = "fact"
    PREFERENCE = "preference"
    TASK_PROMPT = "task_prompt"
    DOMAIN_KNOWLEDGE = "domain_knowledge"
    SKILL = "skill"


class Origin(StrEnum):
    """Which way a block came into being."""

    FINE_TUNED = "fine_tuned"
    MERGED = "merged"
    IMPORTED = "imported"
    INFERENCE = "inference"
    USER_INPUT = "user_input"
    RETRIEVAL = "retrieval"


class Sensitivity(StrEnum):
    """Who may see a block: public and internal ones leave the bank, confidential ones only redacted, secret ones never."""

    PUBLIC = "public"
    INTERNAL = "internal"
    CONFIDENTIAL = "confidential"
    SECRET = "secret"


@dataclass(frozen=True)
class BlockCard:
    """What a block is, where it comes from, and how it scored. What changes while it lives is the bank's to know.

    name: free text. domain: what it was distilled from. base: fingerprint of the base model's weights, empty when
    unknown; base_name and base_revision: what people call it. parents: digests of the versions it was made from.
    recipe: settings, seeds and digests of the run that made it. metrics: scores at the time of making.
    peft_config: the adapter's PEFT config verbatim, so that an export is bit-exact.
    semantic_type, origin: empty where nobody said. sources: ids of what it was made from. priority: the higher, the
    longer it is kept. ttl: seconds from its commit until it expires, None for never. half_life: seconds without a use in
    which its standing halves, None for no decay. embedding: a compact vector by which it may be found.
    extra: anything else, beside these fields in JSON; survives a round trip untouched.
    """

    name: str
    domain: str
    base: str
    base_name: str = ""
    base_revision: str = ""
    licence: str = ""
    made_by: str = ""
    created: str = ""
    semantic_type: str = ""
    origin: str = ""
    sources: tuple[str, ...] = ()
    sensitivity: str = Sensitivity.INTERNAL.value
    priority: int = 0
    ttl: float | None = None
    half_life: float | None = None
    embedding: tuple[float, ...] = ()
    parents: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    peft_config: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_word(self, "semantic_type", ("", *SemanticType))
        _check_word(self, "origin", ("", *Origin))
        _check_word(self, "sensitivity", tuple(Sensitivity))
        for name in ("ttl", "half_life"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not 0 < value <= LONGEST):
                raise ConfigError(
                    f"card {self.name!r}: {name} is {value}; "
                    f"give a number of seconds above 0 and at most {LONGEST:g}, or None for never"
                )
        if isinstance(self.priority, bool) or not 0 <= self.priority <= HIGHEST_PRIORITY:
            raise ConfigError(
                f"card {self.name!r}: priority is {self.priority}; the least is 0, the highest {HIGHEST_PRIORITY}"
            )
        if clash := sorted(self.extra.keys() & {item.name for item in fields(self)}):
            raise ConfigError(f"card {self.name!r}: extra holds {clash[0]!r}, which is a field of every card; set that")


@dataclass(frozen=True)
class Version:
    """One immutable version: digest identifies its bytes; number counts 1, 2, ... under its name.

    restores: the number of the earlier version whose bytes a rollback made the latest again, None for any other version.
    namespace: who owns the name; see pmemx.store.references.
    """

    name: str
    number: int
    digest: str
    card: BlockCard
    restores: int | None = None
    namespace: str = "shared"


def _check_word(card: BlockCard, name: str, words: tuple[str, ...]) -> None:
    if getattr(card, name) not in words:
        known = ", ".join(word for word in words if word)
        raise ConfigError(f"card {card.name!r}: {name} is {getattr(card, name)!r}, but it is one of {known}")
