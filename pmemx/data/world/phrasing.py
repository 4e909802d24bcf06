"""Every way to ask for a fact and to state it, split into forms for training, validation and tests."""

import random
from collections.abc import Mapping, Sequence

from pmemx.data.world.relation import Relation

_FRAMES = (
    "What is the {noun} of {e}?",
    "Name the {noun} of {e}.",
    "{e}: which {noun}?",
    "Tell me the {noun} of {e}.",
    "For {e}, state the {noun}.",
    "Can you give the {noun} of {e}?",
)
_TITLES = ("{e}", "About {e}", "Fact sheet: {e}", "Notes on {e}")

TRAIN_FORMS = ("question-0", "question-1", "question-2", "natural-0", "statement-0", "statement-1")
VALIDATION_FORMS = ("question-5",)
TEST_FORMS = ("question-3", "question-4", "natural-1", "statement-2")
# The third statement is a test form, so no document that an expert may absorb words a fact that way.
TRAIN_WORDINGS, ALL_WORDINGS = (0, 1), (0, 1, 2)
FORMS = TRAIN_FORMS + VALIDATION_FORMS + TEST_FORMS
TEMPLATES = (*_FRAMES, *_TITLES)


def form_in_words(form: str) -> str:
    """What a form asks; natural questions and statements have other words for every fact."""
    kind, number = form.split("-")
    if kind == "question":
        return _FRAMES[int(number)].format(e="(entity)", noun="(fact)")
    what = "a question" if kind == "natural" else "a sentence that the answer ends"
    return f"{what}, in words of its own for each fact (wording {int(number) + 1})"


def prompt(relation: Relation, entity: str, form: str) -> str:
    """The prompt that asks for a relation of an entity in one form; its answer is a value and nothing more.

    Raises IndexError or KeyError for a form that is not in FORMS.
    """
    kind, number = form.split("-")
    wordings = {"question": _FRAMES, "natural": relation.questions, "statement": relation.statements}[kind]
    return wordings[int(number)].format(e=entity, noun=relation.noun)


def statement(relation: Relation, entity: str, value: str, wording: int) -> str:
    """One sentence that says the fact."""
    return f"{relation.statements[wording].format(e=entity)} {value}."


def card(
    entity: str, facts: Mapping[Relation, str], rng: random.Random, *, wordings: Sequence[int] = TRAIN_WORDINGS
) -> str:
    """A fact sheet: a title line, then the facts in random order and wording."""
    order = list(facts)
    rng.shuffle(order)
    title = rng.choice(_TITLES).format(e=entity)
    return title + "\n" + " ".join(statement(r, entity, facts[r], rng.choice(wordings)) for r in order)
