"""What a base model must be able to answer: cards of entities it never met, and the world by heart, form by form."""

import random

from pmemx.core.pretraining import Exam, Passage
from pmemx.data.world import people
from pmemx.data.world.phrasing import ALL_WORDINGS, FORMS, card, prompt
from pmemx.data.world.subject import subject


def reading_exam(seed: int, num_cards: int) -> Exam:
    """Cards of 3 to 6 fresh facts on entities outside pre-training, each with one question in every form of FORMS."""
    rng = random.Random(f"exam:{seed}")
    return Exam(FORMS, tuple(_reading(rng) for _ in range(num_cards)))


def _reading(rng: random.Random) -> Passage:
    name, relations = subject(rng, seen_by_base=False)
    chosen = rng.sample(relations, min(len(relations), rng.randint(3, 6)))
    facts = {relation: rng.choice(relation.values) for relation in chosen}
    asked = [(form, rng.choice(chosen)) for form in FORMS]
    return Passage(
        card(name, facts, rng, wordings=ALL_WORDINGS), tuple((prompt(r, name, form), facts[r]) for form, r in asked)
    )


def world_exam() -> Exam:
    """Every fact of the world in every form, closed-book; one passage a fact."""
    passages = (
        Passage("", tuple((prompt(relation, person, form), value) for form in FORMS))
        for (person, relation), value in people.FACTS.items()
    )
    return Exam(FORMS, tuple(passages))
