"""The endless text that a base model is pre-trained on: reading cards, the closed world, letters and records."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pmemx.core.pretraining import Exam, Passage, PretrainingText
from pmemx.data.world import letters, people, records
from pmemx.data.world.exam import reading_exam, world_exam
from pmemx.data.world.narrative import narrative
from pmemx.data.world.phrasing import ALL_WORDINGS, FORMS, card, prompt
from pmemx.data.world.subject import subject
from pmemx.data.world.vocabulary import PUNCTUATION, vocabulary


@dataclass(frozen=True, kw_only=True)
class Mix(PretrainingText):
    """Shares of passages by kind and continuations by passage."""

    reading: float = 0.77
    world: float = 0.14
    letters: float = 0.05
    records: float = 0.04
    questions: int = 8

    def words(self) -> tuple[str, ...]:
        """The vocabulary of the procedural world."""
        return vocabulary()

    def punctuation(self) -> tuple[str, ...]:
        """The marks of the procedural world."""
        return PUNCTUATION

    def exams(self, *, final: bool) -> Mapping[str, Exam]:
        """reading: cards of entities that passages never name; world: facts by heart, all of them in the end."""
        if final:
            return {"reading": reading_exam(2, 400), "world": world_exam()}
        world = world_exam()
        return {"reading": reading_exam(1, 64), "world": Exam(world.forms, world.passages[::4])}

    def passages(self, rng: random.Random) -> Iterator[Passage]:
        """Endless passages. Facts of domains are drawn anew for every card, and only ever shown with the card."""
        kinds = (self._reading, self._world, self._letters, self._records)
        weights = (self.reading, self.world, self.letters, self.records)
        while True:
            yield rng.choices(kinds, weights)[0](rng)

    def _reading(self, rng: random.Random) -> Passage:
        return _read(rng, num_questions=self.questions, seen_by_base=True)

    def _world(self, rng: random.Random) -> Passage:
        return Passage("", tuple(_recollection(rng) for _ in range(self.questions)))

    def _letters(self, rng: random.Random) -> Passage:
        return Passage("", tuple(letters.elementary(rng) for _ in range(self.questions)))

    def _records(self, rng: random.Random) -> Passage:
        record = records.draw(rng, seen_by_base=True)
        questions = tuple(records.reading(record, rng) for _ in range(self.questions))
        return Passage(records.text(record, rng), questions)


def _read(rng: random.Random, *, num_questions: int, seen_by_base: bool) -> Passage:
    """A card of 1 to 6 fresh facts about an entity or a person, and questions about it in any form."""
    name, relations = subject(rng, seen_by_base=seen_by_base)
    chosen = rng.sample(relations, min(len(relations), rng.randint(1, 6)))
    facts = {relation: rng.choice(relation.values) for relation in chosen}
    asked = rng.choices(chosen, k=num_questions)
    questions = tuple((prompt(r, name, rng.choice(FORMS)), facts[r]) for r in asked)
    return Passage(card(name, facts, rng, wordings=ALL_WORDINGS), questions)


def _recollection(rng: random.Random) -> tuple[str, str]:
    person = rng.choice(people.PEOPLE)
    if rng.random() < 0.1:
        facts = {relation: people.FACTS[person, relation] for relation in people.RELATIONS}
        return "", narrative(person, facts, rng, wordings=ALL_WORDINGS)
    relation = rng.choice(people.RELATIONS)
    return prompt(relation, person, rng.choice(FORMS)), people.FACTS[person, relation]
