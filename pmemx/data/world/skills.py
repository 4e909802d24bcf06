"""Domains of skills: texts to transform, exact answers, items of the splits disjoint."""

import random

from pmemx.core.domain import Domain, Example
from pmemx.data.world import letters


def skill(name: str, *, seed: int, num_train: int, num_test: int) -> Domain:
    """Rows of letters to transform by one of letters.SKILLS; one prompt a row."""
    rng = random.Random(f"{seed}:skill:{name}")
    seen: set[str] = set()

    def split(forms: tuple[str, ...], count: int) -> tuple[Example, ...]:
        return tuple(_example(name, rng, forms[index % len(forms)], seen) for index in range(count))

    return Domain(
        name,
        split(letters.TRAIN_FORMS, num_train),
        split(letters.VALIDATION_FORMS, num_test // 4),
        split(letters.TEST_FORMS, num_test),
        chance=letters.chance(name),
        family="skill",
        instruction=letters.INSTRUCTIONS[name],
    )


def _example(name: str, rng: random.Random, form: str, seen: set[str]) -> Example:
    row = letters.draw(rng, letters.LENGTHS_OF_SKILLS)
    while (item := "".join(row)) in seen:
        row = letters.draw(rng, letters.LENGTHS_OF_SKILLS)
    seen.add(item)
    response = " ".join(letters.SKILLS[name](row))
    return Example(
        f"{name}/{item}/{form}", letters.prompt(name, row, form), response, group=f"{name}/{item}", form=form
    )
