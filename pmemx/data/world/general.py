"""General text of the base's world: facts known by heart, running text, and reading; the measure of forgetting."""

import random
from collections.abc import Sequence

from pmemx.core.domain import Domain, Example
from pmemx.data.world.narrative import narrative
from pmemx.data.world.people import FACTS, PEOPLE, RELATIONS, stranger
from pmemx.data.world.phrasing import (
    ALL_WORDINGS,
    TEST_FORMS,
    TRAIN_FORMS,
    TRAIN_WORDINGS,
    VALIDATION_FORMS,
    card,
    prompt,
)
from pmemx.data.world.relation import Relation

_NUM_RELATIONS = len(RELATIONS) // 2


def general(*, seed: int, num_narratives: int, num_readings: int) -> Domain:
    """Half of what is known of each person in train, the other half in test, so 128 facts each.

    Test asks every fact once in a form that training shows and once in one that it does not; narratives (no prompt,
    form "narrative") and cards of strangers in the prompt (form "reading-...") come on top, as many in each split.
    """
    rng = random.Random(f"{seed}:general")
    halves = {person: rng.sample(RELATIONS, len(RELATIONS)) for person in PEOPLE}
    first = {person: order[:_NUM_RELATIONS] for person, order in halves.items()}
    second = {person: order[_NUM_RELATIONS:] for person, order in halves.items()}
    train = [_fact(person, r, form) for person in PEOPLE for r in first[person] for form in TRAIN_FORMS]
    validation = [_fact(person, r, form) for person in PEOPLE for r in first[person] for form in VALIDATION_FORMS]
    test = [
        _fact(person, r, form)
        for person in PEOPLE
        for r in second[person]
        for form in (rng.choice(TRAIN_FORMS), rng.choice(TEST_FORMS))
    ]
    for rows, half, forms, wordings in (
        (train, first, TRAIN_FORMS, TRAIN_WORDINGS),
        (test, second, TEST_FORMS, ALL_WORDINGS),
    ):
        rows += _narratives(half, num_narratives, rng, wordings)
        rows += [_reading(rng, rng.choice(forms)) for _ in range(num_readings)]
    return Domain(
        "general",
        tuple(train),
        tuple(validation),
        tuple(test),
        chance=1 / 16,
        family="general",
        instruction="The people of the base model's own world.",
    )


def _fact(person: str, relation: Relation, form: str) -> Example:
    group = f"general/{person}/{relation.name}"
    return Example(f"{group}/{form}", prompt(relation, person, form), FACTS[person, relation], group=group, form=form)


def _narratives(
    half: dict[str, list[Relation]], count: int, rng: random.Random, wordings: Sequence[int]
) -> list[Example]:
    texts: dict[str, str] = {}
    while len(texts) < count:
        person = PEOPLE[len(texts) % len(PEOPLE)]
        facts = {r: FACTS[person, r] for r in half[person]}
        texts[narrative(person, facts, rng, wordings=wordings)] = person
    return [
        Example(
            f"general/{person}/narrative-{number}-{half[person][0].name}",
            "",
            text,
            "",
            f"general/{person}",
            "narrative",
        )
        for number, (text, person) in enumerate(texts.items())
    ]


def _reading(rng: random.Random, form: str) -> Example:
    name = stranger(rng)
    facts = {relation: rng.choice(relation.values) for relation in rng.sample(RELATIONS, rng.randint(3, 6))}
    relation = rng.choice(list(facts))
    key = f"general/card of {name}/{rng.getrandbits(32):08x}"
    question = f"{card(name, facts, rng)}\n\n{prompt(relation, name, form)}"
    return Example(f"{key}/{relation.name}/{form}", question, facts[relation], group=key, form=f"reading-{form}")
