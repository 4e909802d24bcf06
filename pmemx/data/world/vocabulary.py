"""Every word that the procedural world can say, so that a tokenizer can hold each as one token."""

import re
from collections.abc import Iterator

from pmemx.data.world import letters, narrative, people, phrasing, records
from pmemx.data.world.names import FAMILY, GIVEN, PROPER, TOPICS

PUNCTUATION = (".", ",", "?", ":", ";", "\n")


def vocabulary() -> tuple[str, ...]:
    """All words, without the punctuation, sorted."""
    words = set()
    for text in _texts():
        words.update(re.findall(r"[^\s.,?:;]+", re.sub(r"\{\w*\}", " ", text)))
    return tuple(sorted(words))


def _texts() -> Iterator[str]:
    for relation in (*people.RELATIONS, *(relation for topic in TOPICS for relation in topic.relations)):
        yield from (relation.noun, *relation.statements, *relation.questions, *relation.values)
    for topic in TOPICS:
        yield from topic.kinds
    yield from (*PROPER, *GIVEN, *FAMILY)
    yield from phrasing.TEMPLATES
    yield from letters.TEMPLATES
    yield from records.TEMPLATES
    yield from narrative.TEMPLATES
