"""Whom a card of pre-training or of an exam is about."""

import random

from pmemx.data.world import people
from pmemx.data.world.names import TOPICS, entities
from pmemx.data.world.relation import Relation


def subject(rng: random.Random, *, seen_by_base: bool) -> tuple[str, tuple[Relation, ...]]:
    """A name and what can be said of it: an entity of any topic, or a person not of the world."""
    if rng.random() < 1 / (1 + len(TOPICS)):
        return people.stranger(rng), people.RELATIONS
    topic = rng.choice(TOPICS)
    return " ".join(rng.choice(entities(topic, seen_by_base=seen_by_base))), topic.relations
