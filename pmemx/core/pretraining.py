"""The interfaces of pre-training: what a base model is made of, what it reads, and how it is examined."""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Passage:
    """A text in context and the continuations of it, none of which sees another.

    context may be empty. A continuation is (prompt, response); running text has an empty prompt.
    """

    context: str
    continuations: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Exam:
    """Questions of known answers. Every passage asks each of the forms once, in their order."""

    forms: tuple[str, ...]
    passages: tuple[Passage, ...]


class PretrainingText(ABC):
    """What a base model is trained on. A frozen dataclass of settings."""

    @abstractmethod
    def words(self) -> tuple[str, ...]:
        """All words that the text can hold, without punctuation."""

    @abstractmethod
    def punctuation(self) -> tuple[str, ...]:
        """Marks that stand apart from words."""

    @abstractmethod
    def passages(self, rng: random.Random) -> Iterator[Passage]:
        """Endless text."""

    @abstractmethod
    def exams(self, *, final: bool) -> Mapping[str, Exam]:
        """Exams by name; short ones to be sat on the way, and other, longer ones for the final scores."""


class UntrainedModel(ABC):
    """The architecture of a base model. A frozen dataclass of sizes."""

    @abstractmethod
    def build(self, words: tuple[str, ...], punctuation: tuple[str, ...]) -> tuple[Any, Any]:
        """A transformers model with weights from torch's global generator, and its tokenizer."""
