"""What a topic is made of: relations with their wordings and their closed sets of values."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """One thing that can be said of an entity.

    noun: what generic questions call it. statements: three sentences about {e} that end where the value comes, without
    it. questions: two natural questions in different words, the first for training and the second for tests.
    values: 16 answers; their first words differ, so that one token tells them apart.
    """

    name: str
    noun: str
    statements: tuple[str, str, str]
    questions: tuple[str, str]
    values: tuple[str, ...]


@dataclass(frozen=True)
class Topic:
    """A domain of knowledge: what its entities are called and what is said of them."""

    name: str
    instruction: str
    kinds: tuple[str, ...]
    relations: tuple[Relation, ...]


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())
