"""A card without what only its owner should know, and with a mark that says so; imports no torch.

What stays is what a client needs to load the block, to choose it, and to treat it as its owner wants it treated. What was
masked is named in `extra`, beside the digest of the version that it stood in: its owner finds the original by it, and
nobody else learns more than this: whoever guesses all masked fields exactly can confirm the guess by the digest.
"""

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any

from pmemx.core.card import BlockCard

REDACTED = "redacted"
"""What stands in the place of a masked text, and the key of the mark in `extra`."""

KEPT = frozenset(
    {
        "name",  # what the copy is asked for by
        "domain",  # what it is good for
        "base",  # without it nobody can tell whether it fits
        "base_revision",
        "licence",  # its conditions bind whoever has it
        "created",  # how old its knowledge is
        "semantic_type",  # a word of a closed list
        "origin",  # likewise
        "sensitivity",  # the next bank must treat it as this one did
        "priority",  # how its owner wants it kept
        "ttl",  # likewise: a copy must not outlive the original
        "half_life",
        "parents",  # digests, which tell the banks that hold those versions, and nobody else
        "metrics",  # whoever has the weights can measure them
    }
)
"""Fields that a redacted card has as they were."""

MASKS: Mapping[str, Any] = MappingProxyType(
    {
        "made_by": REDACTED,  # a person, a host, or the version of a tool
        "sources": (),  # ids of messages, documents and people
        "recipe": {},  # paths, prompts, names of data sets, settings that are somebody's trade
        "embedding": (),  # from an embedding its text can be found again (arXiv:2310.06816)
        "extra": {},  # nobody knows what is in there
    }
)
"""What masked fields hold afterwards, where they held anything. base_name and peft_config are cleaned, see redact."""

# Of a PEFT config what is needed to apply the adapter. How it was trained is nobody's business, and what an unknown field
# means is unknown: settings of EVA, CorDA and LoftQ, for one, name files of the machine.
_APPLIES = frozenset(
    (
        "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "exclude_modules", "fan_in_fan_out",
        "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout",
        "modules_to_save", "peft_type", "peft_version", "r", "rank_pattern", "revision", "target_modules", "task_type",
        "use_dora", "use_rslora",
    )
)  # fmt: skip
_PATH = re.compile(r"[/\\~.]|[A-Za-z]:[/\\]|[A-Za-z][A-Za-z0-9+.-]+://")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def redact(card: BlockCard, original: str) -> BlockCard:
    """The card with secrets masked and a mark in `extra`; a redacted card is given back as it is.

    original: digest of the version that the card is from. Of a base that is called by a path only the last part of it
    stays, in base_name and in the PEFT config, which keeps what applies the adapter.
    """
    if is_redacted(card):
        return card
    clean = _clean(card)
    masked = sorted(item.name for item in fields(card) if getattr(clean, item.name) != getattr(card, item.name))
    return replace(clean, extra={REDACTED: {"original": original, "fields": masked}})


def is_redacted(card: BlockCard) -> bool:
    """Whether nothing is left to mask. A mark alone proves nothing: the fields are looked at."""
    mark = card.extra.get(REDACTED)
    return (
        card.extra.keys() == {REDACTED}
        and isinstance(mark, Mapping)
        and mark.keys() == {"original", "fields"}
        and isinstance(mark["original"], str)
        and bool(_DIGEST.fullmatch(mark["original"]))
        and isinstance(mark["fields"], list | tuple)
        and all(name in MASKS or name in _CLEANED for name in mark["fields"])
        and replace(_clean(card), extra=card.extra) == card
    )


def redact_message(message: str) -> str:
    """Masked, unless there is none: people write into messages why they changed what."""
    return REDACTED if message else ""


_CLEANED = ("base_name", "peft_config")


def _clean(card: BlockCard) -> BlockCard:
    changes = {name: mask for name, mask in MASKS.items() if getattr(card, name)}
    config = {key: value for key, value in card.peft_config.items() if key in _APPLIES}
    called = config.get("base_model_name_or_path")
    if isinstance(called, str):
        config["base_model_name_or_path"] = _last_part(called)
    return replace(card, **changes, base_name=_last_part(card.base_name), peft_config=config)


def _last_part(name: str) -> str:
    """A name of the Hub ("owner/name") as it is; of a path or a URL what stands last."""
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] if _PATH.match(name) else name
