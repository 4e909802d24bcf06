"""Records of news about firms, and the headlines that summarise them."""

import random

from pmemx.data.world.finance import FINANCE
from pmemx.data.world.names import GIVEN, entities
from pmemx.data.world.people import RELATIONS as PEOPLE_RELATIONS
from pmemx.data.world.relation import words

INSTRUCTION = "Turn a record of six fields into a headline of one line."
_TOWNS = PEOPLE_RELATIONS[0].values
_FIELDS = {
    "Measure": ("profit", "revenue", "debt", "output", "turnover", "cost", "demand", "value"),
    "Trend": ("up", "down", "steady", "doubled", "halved", "unclear"),
    "Town": _TOWNS,
    "Month": words("January February March April May June July August September October November December"),
    "Reporter": GIVEN,
}
_INSTRUCTIONS = (
    "Write a headline for this record.",
    "Summarise the record in a headline.",
    "The headline of this record is",
    "Which headline fits the record?",
    "Make a headline out of this record.",
    "Headline:",
    "What is the headline of this record?",
    "Now write a headline.",
    "Tell me the headline.",
    "Name the headline of the record.",
)
_QUESTIONS = ("What is the {}?", "Read the {} of this record.", "Which {} does the record give?")
TEMPLATES = (*_INSTRUCTIONS, *_QUESTIONS, *_FIELDS, "Firm", "in", *(v for values in _FIELDS.values() for v in values))
TRAIN_FORMS = ("ask-0", "ask-1", "ask-2", "ask-4", "ask-5", "ask-6", "ask-7")
VALIDATION_FORMS, TEST_FORMS = ("ask-3",), ("ask-8", "ask-9")


def draw(rng: random.Random, *, seen_by_base: bool) -> dict[str, str]:
    """A record: field names to values. Firms seen in pre-training never occur in the records of experts."""
    firm = " ".join(rng.choice(entities(FINANCE, seen_by_base=seen_by_base)))
    return {"Firm": firm} | {field: rng.choice(values) for field, values in _FIELDS.items()}


def text(record: dict[str, str], rng: random.Random) -> str:
    """The record as one "Field: value" line each, in random order."""
    lines = [f"{field}: {value}" for field, value in record.items()]
    rng.shuffle(lines)
    return "\n".join(lines)


def prompt(record: dict[str, str], form: str, rng: random.Random) -> str:
    """The record and the instruction to summarise it in one form."""
    return f"{text(record, rng)}\n\n{form_in_words(form)}"


def form_in_words(form: str) -> str:
    """The instruction that follows the record."""
    return _INSTRUCTIONS[int(form.removeprefix("ask-"))]


def headline(record: dict[str, str]) -> str:
    """Four of the six fields in a fixed order."""
    return f"{record['Firm']} {record['Measure']} {record['Trend']} in {record['Town']}"


def chance() -> float:
    """Exact-match rate of a guesser that knows the order of fields and draws their values."""
    num_firms = len(entities(FINANCE, seen_by_base=False))
    return 1 / (num_firms * len(_FIELDS["Measure"]) * len(_FIELDS["Trend"]) * len(_TOWNS))


def reading(record: dict[str, str], rng: random.Random) -> tuple[str, str]:
    """A question about one field with its answer; all that pre-training asks about records."""
    field = rng.choice(list(record))
    return rng.choice(_QUESTIONS).format(field), record[field]
