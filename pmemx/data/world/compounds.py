"""Domains that take two experts at once: two skills one after the other, or facts of two topics in one prompt."""

import random
from collections.abc import Sequence
from itertools import permutations, product

from pmemx.core.domain import JOIN, Domain, Example
from pmemx.data.world import letters

# A statement ends where its value comes, so that nothing can be asked after it.
_ASKING = ("question", "natural")


def needs_both(first: str, second: str) -> bool:
    """Whether two of letters.SKILLS give together what neither gives alone: letters are sorted alike in any order."""
    rows = permutations(letters.LETTERS[: max(letters.LENGTHS_OF_SKILLS)])
    return not all(_in_part(first, second, list(row)) for row in rows)


def two_skills(first: str, second: str, *, seed: int, num_train: int, num_test: int) -> Domain:
    """Rows of letters to transform by the second of letters.SKILLS after the first; one prompt a row.

    The skills are two that `needs_both`; neither alone gives any of the answers.
    """
    name = f"{first}{JOIN}{second}"
    rng = random.Random(f"{seed}:compound:{name}")
    seen: set[str] = set()

    def split(forms: tuple[str, ...], count: int) -> tuple[Example, ...]:
        return tuple(_transformation(first, second, rng, forms[index % len(forms)], seen) for index in range(count))

    return Domain(
        name,
        split(letters.TRAIN_FORMS, num_train),
        split(letters.VALIDATION_FORMS, num_test // 4),
        split(letters.TEST_FORMS, num_test),
        chance=letters.chance("shift" if "shift" in (first, second) else first),
        family="compound",
        instruction=f"{letters.INSTRUCTIONS[first]} Then: {letters.INSTRUCTIONS[second]}",
    )


def two_questions(first: Domain, second: Domain, *, seed: int, num_train: int, num_test: int) -> Domain:
    """A question of each of two domains of knowledge in one prompt, and both answers in that order.

    Entities are asked in pairs, each in one pair only, so that groups are independent. Both questions have the same form;
    there are fewer prompts where the pairs, their facts and the forms of a split give no more. document: the sheets of both.
    """
    name = f"{first.name}{JOIN}{second.name}"
    rng = random.Random(f"{seed}:compound:{name}")
    ones, others = list(_by_entity(first.test)), list(_by_entity(second.test))
    pairs = list(zip(rng.sample(ones, len(ones)), rng.sample(others, len(others)), strict=False))

    def split(some: Sequence[Example], more: Sequence[Example], count: int) -> tuple[Example, ...]:
        of_first, of_second = _by_entity(some), _by_entity(more)
        asked = [
            (one, other)
            for entity, partner in pairs
            for one, other in product(of_first[entity], of_second[partner])
            if one.form == other.form and one.form.startswith(_ASKING)
        ]
        return tuple(_question(name, one, other) for one, other in rng.sample(asked, min(count, len(asked))))

    return Domain(
        name,
        split(first.train, second.train, num_train),
        split(first.validation, second.validation, num_test // 4),
        split(first.test, second.test, num_test),
        chance=first.chance * second.chance,
        family="compound",
        instruction=f"{first.instruction} And: {second.instruction}",
    )


def _transformed(first: str, second: str, row: list[str]) -> list[str]:
    return letters.SKILLS[second](letters.SKILLS[first](row))


def _in_part(first: str, second: str, row: list[str]) -> bool:
    """Whether one part alone gives the answer of both."""
    return _transformed(first, second, row) in (letters.SKILLS[first](row), letters.SKILLS[second](row))


def _transformation(first: str, second: str, rng: random.Random, form: str, seen: set[str]) -> Example:
    row = letters.draw(rng, letters.LENGTHS_OF_SKILLS)
    while (item := "".join(row)) in seen or _in_part(first, second, row):
        row = letters.draw(rng, letters.LENGTHS_OF_SKILLS)
    seen.add(item)
    group = f"{first}{JOIN}{second}/{item}"
    response = " ".join(_transformed(first, second, row))
    return Example(
        f"{group}/{form}", letters.prompt(f"{first}, then {second}", row, form), response, group=group, form=form
    )


def _by_entity(examples: Sequence[Example]) -> dict[str, list[Example]]:
    found: dict[str, list[Example]] = {}
    for example in examples:
        found.setdefault(example.group, []).append(example)
    return found


def _question(name: str, one: Example, other: Example) -> Example:
    return Example(
        f"{name}/{one.id}{JOIN}{other.id}",
        f"{one.prompt} {other.prompt}",
        f"{one.response} {other.response}",
        f"{one.document}\n\n{other.document}",
        f"{name}/{one.group}{JOIN}{other.group}",
        one.form,
    )
