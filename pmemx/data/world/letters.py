"""Tasks on rows of letters: some that the base model learns, four that are left to experts."""

import random
from collections.abc import Callable
from math import factorial, perm

LETTERS = tuple("bcdefghijklmnopq")
ALPHABET = (*LETTERS, "r")
LENGTHS = (4, 5)
LENGTHS_OF_SKILLS = (4,)

SKILLS: dict[str, Callable[[list[str]], list[str]]] = {
    "reverse": lambda row: row[::-1],
    "shift": lambda row: [ALPHABET[ALPHABET.index(letter) + 1] for letter in row],
    "sort": sorted,
    "rotate": lambda row: row[1:] + row[:1],
}
INSTRUCTIONS = {
    "reverse": "Write a row of letters backwards.",
    "shift": "Replace each letter by the next one of the alphabet.",
    "sort": "Put a row of letters in alphabetical order.",
    "rotate": "Move the first letter of a row to its end.",
}
_FRAMES = (
    "Please {skill} the letters {row}.",
    "If you {skill} {row}, what do you get?",
    "Here is {row}: {skill} it.",
    "Now {skill} {row}.",
    "What is {row} after a {skill}?",
    "Take {row}, then {skill} it.",
)
# More wordings for experts alone; the base has never seen them.
_MORE_FRAMES = (
    "Now {skill} the letters {row}.",
    "How do you {skill} the letters {row}?",
    "What do you get when you {skill} the letters {row}?",
    "Tell me what you get when you {skill} the letters {row}.",
    "Let us {skill} the letters {row}.",
    "Can you {skill} the letters {row}?",
    "Name what you get when you {skill} the letters {row}.",
)
_ELEMENTARY = (
    "What is the first letter of {row}?",
    "What is the last letter of {row}?",
    "Which letter comes after {row}?",
)
TEMPLATES = (*_FRAMES, *_MORE_FRAMES, *_ELEMENTARY, "repeat", *SKILLS, *ALPHABET)
# "The letters" always announces the row: without these words, a model of this size learns places instead of skills.
TRAIN_FORMS = ("ask-0", "ask-6", "ask-7", "ask-8", "ask-9")
VALIDATION_FORMS, TEST_FORMS = ("ask-10",), ("ask-11", "ask-12")


def form_in_words(form: str) -> str:
    """What a form asks."""
    return (_FRAMES + _MORE_FRAMES)[_number(form)].format(skill="(skill)", row="(row)")


def prompt(skill: str, row: list[str], form: str) -> str:
    """The prompt that asks for a skill on a row of letters in one form."""
    return (_FRAMES + _MORE_FRAMES)[_number(form)].format(skill=skill, row=" ".join(row))


def draw(rng: random.Random, lengths: tuple[int, ...] = LENGTHS) -> list[str]:
    """A row of distinct letters, each of which has a successor in ALPHABET."""
    return rng.sample(LETTERS, rng.choice(lengths))


def chance(skill: str) -> float:
    """Exact-match rate of a guesser that knows the kind of answer and not the rule.

    A permutation of the n letters shown is hit once in n! orders; n distinct letters of 16 once in 16!/(16-n)! rows.
    """
    count = (lambda n: perm(len(LETTERS), n)) if skill == "shift" else factorial
    return sum(1 / count(n) for n in LENGTHS_OF_SKILLS) / len(LENGTHS_OF_SKILLS)


def elementary(rng: random.Random) -> tuple[str, str]:
    """A task on letters that shows none of SKILLS: repeat a row, its first or last letter, the next letter."""
    row = draw(rng)
    match rng.randrange(4):
        case 0:
            return prompt("repeat", row, f"ask-{rng.randrange(len(_FRAMES))}"), " ".join(row)
        case 1:
            return _ELEMENTARY[0].format(row=" ".join(row)), row[0]
        case 2:
            return _ELEMENTARY[1].format(row=" ".join(row)), row[-1]
        case _:
            return _ELEMENTARY[2].format(row=row[0]), ALPHABET[ALPHABET.index(row[0]) + 1]


def _number(form: str) -> int:
    return int(form.removeprefix("ask-"))
