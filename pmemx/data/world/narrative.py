"""Running text about the people of the world, with small talk that belongs to no domain."""

import random
from collections.abc import Sequence

from pmemx.data.world.phrasing import statement
from pmemx.data.world.relation import Relation

_OPENINGS = (
    "Let me tell you about {e}.",
    "This is a short story about {e}.",
    "Here is what people know about {e}.",
    "Yesterday I met {e}.",
)
# The words of instructions that only experts will understand occur here in ordinary use, so that none is untrained.
_REMARKS = (
    "Nobody would reverse that order.",
    "It is a pleasure to sort old letters.",
    "The early shift is quiet.",
    "They rotate the chairs, then talk.",
    "Please write a headline for the paper.",
    "I could not summarise it in one line.",
    "Make of this what you like.",
    "Which story fits the day?",
    "Take it out of the record, or turn the page into a record.",
    "I repeat what I was told.",
    "Headline: nothing new.",
    "Write soon; I miss you.",
    "Summarise it, then sleep.",
)
TEMPLATES = (*_OPENINGS, *_REMARKS)


def narrative(person: str, facts: dict[Relation, str], rng: random.Random, *, wordings: Sequence[int]) -> str:
    """3 to 5 sentences: an opening, some of the facts (at most 4) and sometimes a remark."""
    chosen = rng.sample(list(facts), min(len(facts), rng.randint(2, 4)))
    sentences = [statement(r, person, facts[r], rng.choice(wordings)) for r in chosen]
    if len(sentences) < 4 and rng.random() < 0.5:
        sentences.append(rng.choice(_REMARKS))
    return " ".join((rng.choice(_OPENINGS).format(e=person), *sentences))
