"""Domains of knowledge: fact sheets of fictional entities, and questions about entities that no sheet describes."""

import random
from collections.abc import Iterator, Sequence
from itertools import chain, islice

from pmemx.core.domain import Document, Domain, Example
from pmemx.data.world.names import PROPER, entities
from pmemx.data.world.phrasing import TEST_FORMS, TRAIN_FORMS, VALIDATION_FORMS, card, prompt
from pmemx.data.world.relation import Relation, Topic

Pair = tuple[str, str]
_FRESH_NAMES = 12


def fresh_names(seed: int) -> frozenset[str]:
    """Proper names that only unknown test entities bear."""
    return frozenset(random.Random(f"{seed}:fresh").sample(PROPER, _FRESH_NAMES))


def known(topic: Topic, *, seed: int, num_documents: int) -> list[Pair]:
    """The entities that the documents of a topic describe."""
    fresh = fresh_names(seed)
    pairs = [pair for pair in entities(topic, seen_by_base=False) if pair[0] not in fresh]
    return random.Random(f"{seed}:entities:{topic.name}").sample(pairs, num_documents)


def knowledge(
    topic: Topic, *, seed: int, num_documents: int, paraphrases: int, shard: int = 0, shards: int = 1
) -> Domain:
    """One document an entity, one fact a relation, every fact asked in every form. Chance is one in 16.

    shards: domains into which the topic is cut, num_documents each; shard: which of them this is, from 0.
    """
    documents: list[Document] = []
    splits: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    label = topic.name if shards == 1 else shard_name(topic, shard)
    rng = random.Random(f"{seed}:facts:{label}")
    entities_of_topic = known(topic, seed=seed, num_documents=num_documents * shards)
    for name in map(" ".join, entities_of_topic[shard * num_documents : (shard + 1) * num_documents]):
        facts = {relation: rng.choice(relation.values) for relation in topic.relations}
        key = f"{topic.name}/{name}"
        text, *others = _renderings(name, facts, 1 + paraphrases, random.Random(f"{seed}:cards:{key}"))
        documents.append(Document(key, text, tuple(others)))
        for split, forms in _FORMS.items():
            splits[split] += (
                Example(f"{key}/{relation.name}/{form}", prompt(relation, name, form), value, text, key, form)
                for relation, value in facts.items()
                for form in forms
            )
    return Domain(
        label,
        tuple(splits["train"]),
        tuple(splits["validation"]),
        tuple(splits["test"]),
        tuple(documents),
        chance=sum(1 / len(relation.values) for relation in topic.relations) / len(topic.relations),
        family="knowledge",
        instruction=topic.instruction,
    )


def shard_name(topic: Topic, shard: int) -> str:
    """The name of a part of a topic; parts are numbered from 0, names from 1."""
    return f"{topic.name}-{shard + 1}"


def unknown(topics: Sequence[Topic], *, seed: int, num_documents: int, num_train: int, num_test: int) -> Domain:
    """Prompts about entities of the topics that no document describes; responses are drawn at random and mean nothing.

    Most proper names are those of known entities under another kind or in another topic; a quarter of the test
    entities bears names that occur nowhere else. Entities of the splits are disjoint.
    """
    fresh, rng = fresh_names(seed), random.Random(f"{seed}:unknown")
    taken = {(t.name, pair) for t in topics for pair in known(t, seed=seed, num_documents=num_documents)}
    pairs = [(t, p) for t in topics for p in entities(t, seen_by_base=False) if (t.name, p) not in taken]
    rng.shuffle(pairs)
    of_fresh = [(t, p) for t, p in pairs if p[0] in fresh]
    others = [(t, p) for t, p in pairs if p[0] not in fresh]
    num_entities = -(-num_test // 2)
    num_fresh = num_entities // 4
    held = num_entities - num_fresh
    test = others[:held] + of_fresh[:num_fresh]
    validation, train = others[held : held + num_fresh], others[held + num_fresh :]
    return Domain(
        "unknown",
        tuple(_unknown(train, TRAIN_FORMS, num_train, rng)),
        tuple(_unknown(validation, VALIDATION_FORMS, len(validation), rng)),
        tuple(_unknown(test, TEST_FORMS, num_test, rng)),
        chance=1 / 16,
        family="unknown",
        instruction="Questions in the manner of the domains about entities that no document describes.",
    )


_FORMS = {"train": TRAIN_FORMS, "validation": VALIDATION_FORMS, "test": TEST_FORMS}


def _renderings(name: str, facts: dict[Relation, str], count: int, rng: random.Random) -> tuple[str, ...]:
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[card(name, facts, rng)] = None
    return tuple(texts)


def _unknown(
    subjects: Sequence[tuple[Topic, Pair]], forms: Sequence[str], count: int, rng: random.Random
) -> Iterator[Example]:
    """Entities take turns until `count` prompts are made or each was asked about every relation in every form."""
    asked = []
    for topic, pair in subjects:
        options = [(topic, pair, relation, form) for relation in topic.relations for form in forms]
        asked.append(rng.sample(options, len(options)))
    for topic, pair, relation, form in islice(chain.from_iterable(zip(*asked, strict=True)), count):
        name = " ".join(pair)
        group = f"unknown/{topic.name}/{name}"
        value = rng.choice(relation.values)
        yield Example(f"{group}/{relation.name}/{form}", prompt(relation, name, form), value, group=group, form=form)
