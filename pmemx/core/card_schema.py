"""The JSON schema (draft 2020-12) of a card as `pmemx bank show --json` prints it: `pmemx bank schema` publishes it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pmemx.core.card import HIGHEST_PRIORITY, LONGEST, Origin, SemanticType, Sensitivity
from pmemx.core.lifecycle import State

STANDING = "standing"
"""The key under which a bank tells what is not the card's: versions, state, uses, scores."""

_TEXT = {"type": "string"}
_TEXTS = {"type": "array", "items": _TEXT}
_COUNT = {"type": "integer", "minimum": 0}
_DIGEST = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_TIME = {"type": "string", "format": "date-time"}
_ANYTHING = {"type": "object"}


def _or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _seconds(what: str) -> dict[str, Any]:
    return {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": LONGEST, "description": what}


def _told(schema: Mapping[str, Any], what: str) -> dict[str, Any]:
    return {**schema, "description": what}


_CARD: dict[str, Any] = {
    "name": _told(_TEXT, "Name of the block, free text."),
    "domain": _told(_TEXT, "What it was distilled from."),
    "base": _told(_TEXT, "Fingerprint of the base model's weights, empty where unknown."),
    "base_name": _told(_TEXT, "What people call the base model."),
    "base_revision": _told(_TEXT, "Revision of the base model."),
    "licence": _told(_TEXT, "Licence of the block."),
    "made_by": _told(_TEXT, "Who or what made it."),
    "created": _told(_TEXT, "When it was made, by its maker's word."),
    "semantic_type": {
        "enum": ["", *SemanticType],
        "description": "What kind of thing it remembers, empty where unsaid.",
    },
    "origin": {"enum": ["", *Origin], "description": "Which way it came into being, empty where unsaid."},
    "sources": _told(_TEXTS, "Ids of what it was made from."),
    "sensitivity": {"enum": [*Sensitivity], "description": "Who may see it, and whether it may leave its bank."},
    "priority": _told({**_COUNT, "maximum": HIGHEST_PRIORITY}, "The higher, the longer it is kept."),
    "ttl": _seconds("Seconds from its commit until it expires, null for never."),
    "half_life": _seconds("Seconds without a use in which its worth halves, null for no decay."),
    "embedding": {"type": "array", "items": {"type": "number"}, "description": "A vector by which it may be found."},
    "parents": _told(_TEXTS, "Digests of the versions it was made from."),
    "recipe": _told(_ANYTHING, "Settings, seeds and digests of the run that made it."),
    "metrics": {
        "type": "object",
        "additionalProperties": {"type": "number"},
        "description": "Scores at the time of making.",
    },
    "peft_config": _told(_ANYTHING, "The adapter's PEFT config verbatim; the order of its keys counts."),
}

_FIGURE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "value": {"type": "number"},
        "low": _told(_or_null({"type": "number"}), "Low end of the 95 % interval."),
        "high": _told(_or_null({"type": "number"}), "High end of the 95 % interval."),
        "n": _told(_COUNT, "Questions."),
        "clusters": _told(_COUNT, "Independent groups among them."),
        "floor": _told(_or_null({"type": "number"}), "What chance gives."),
        "ceiling": _told(_or_null({"type": "number"}), "What the teacher with the document in context gives."),
    },
    "required": ["value", "low", "high", "n"],
}

_RELATIVES: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "digest": _TEXT,
            "name": _told(_TEXT, "Empty where this bank does not hold it, or it may not be read."),
            "number": _COUNT,
        },
        "required": ["digest", "name", "number"],
    },
}

_SITES: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {
            "name": _TEXT,
            "rank": _COUNT,
            "width_in": _COUNT,
            "width_out": _COUNT,
            "scale": {"type": "number"},
        },
        "required": ["name", "rank", "width_in", "width_out", "scale"],
    },
}

_STANDING: dict[str, Any] = {
    "namespace": _TEXT,
    "version": {"type": "integer", "minimum": 1},
    "latest": {"type": "boolean"},
    "digest": _told(_DIGEST, "Identifies every byte of the version."),
    "uid": _told(_TEXT, "Id of the block from its first commit on."),
    "state": {"enum": [*State]},
    "tags": _told(_TEXTS, "Tags that point at this version."),
    "other_tags": {
        "type": "object",
        "additionalProperties": _COUNT,
        "description": "Tags that point at other versions of the block, and their numbers.",
    },
    "committed": _TIME,
    "by": _told(_TEXT, "The principal that committed it."),
    "entry": _told(_COUNT, "The entry of the journal that committed it."),
    "message": _TEXT,
    "restores": _told(_or_null(_COUNT), "The earlier version whose bytes a rollback made the latest again."),
    "expires": _or_null(_TIME),
    "uses": _COUNT,
    "last_used": _or_null(_TIME),
    "relevance": _told(_or_null({"type": "number"}), "Mean over its uses."),
    "uses_of_all_versions": _COUNT,
    "worth": _told({"type": "number"}, "What a sweep compares with its bound."),
    "scores": {"type": "object", "additionalProperties": _FIGURE},
    "signatures": _told({"type": "array", "items": _DIGEST}, "Ids of the keys that signed it."),
    "lineage": {
        "type": "object",
        "properties": {"parents": _RELATIVES, "children": _RELATIVES},
        "required": ["parents", "children"],
    },
    "rank": _told(_COUNT, "The largest rank of any site."),
    "bytes": _COUNT,
    "weights": _told(_DIGEST, "sha-256 of the weights."),
    "sites": _SITES,
}

CARD_SCHEMA: Mapping[str, Any] = MappingProxyType(
    {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:pmemx:card:2",
        "title": "Card of a capability block",
        "description": "Fields that are not named here are kept as they are.",
        "type": "object",
        "properties": _CARD
        | {
            STANDING: {
                "type": "object",
                "description": "What the bank knows of the version; no part of the card.",
                "properties": _STANDING,
                "required": sorted(_STANDING),
                "additionalProperties": True,
            }
        },
        "required": ["name", "domain", "base"],
        "additionalProperties": True,
    }
)
