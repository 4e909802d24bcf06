"""A seeded world: domains of knowledge, skills and summaries with exact answers, and the text that belongs to none."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pmemx.core.domain import JOIN, Corpus, Domain, DomainSource
from pmemx.core.errors import ConfigError
from pmemx.data.world import letters, phrasing, records
from pmemx.data.world.compounds import needs_both, two_questions, two_skills
from pmemx.data.world.general import general
from pmemx.data.world.knowledge import knowledge, shard_name, unknown
from pmemx.data.world.letters import SKILLS
from pmemx.data.world.names import TOPICS
from pmemx.data.world.relation import Topic
from pmemx.data.world.skills import skill
from pmemx.data.world.summaries import summaries

_TOPICS = {topic.name: topic for topic in TOPICS}
DOMAINS = (*_TOPICS, "summaries", *SKILLS)


@dataclass(frozen=True, kw_only=True)
class ProceduralWorld(DomainSource):
    """The same settings give the same bytes; one more domain leaves the other domains as they are.

    domains: names out of DOMAINS, in the order of the corpus. documents_per_domain: entities with a fact sheet, five
    facts each, in every domain of knowledge. shards: domains into which every topic is cut, which differ by their entities
    alone; they take turns, law-1, finance-1, ..., law-2, so that the first of them are of all topics. paraphrases: other renderings of each document; 0 is the known negative
    control, in which knowledge is memorised and cannot be extracted. compounds: further domains, after all others, whose
    prompts take two of these at once: two skills ("reverse+shift": shift what was reversed) or two of knowledge
    ("law+engineering": a question of each). They are for tests; a curriculum's `without` keeps experts from learning them.
    The rest are numbers of prompts.
    """

    seed: int = 0
    domains: Sequence[str] = DOMAINS
    documents_per_domain: int = 8
    shards: int = 1
    compounds: Sequence[str] = ()
    paraphrases: int = 8
    items_train: int = 300
    items_test: int = 100
    unknown_train: int = 1500
    unknown_test: int = 200
    narratives: int = 32
    readings: int = 32

    def __post_init__(self) -> None:
        if strange := sorted(set(self.domains) - set(DOMAINS)):
            raise ConfigError(f"data.domains holds {', '.join(strange)}; choose among {', '.join(DOMAINS)}")
        for name, low, high in (("documents_per_domain", 1, 64), ("shards", 1, 64), ("paraphrases", 0, 64)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"data.{name}={getattr(self, name)} is outside {low}..{high}; choose a value inside")
        if self.shards * self.documents_per_domain > 64:
            raise ConfigError(
                f"data.shards={self.shards} of data.documents_per_domain={self.documents_per_domain} are more than the 64 "
                f"documents of a topic; make fewer or smaller ones"
            )
        skills = self._skills
        for name in self.compounds:
            parts = name.split(JOIN)
            if len(parts) != 2 or parts[0] == parts[1] or not (skills >= set(parts) or self._topic_names >= set(parts)):
                raise ConfigError(
                    f"data.compounds holds {name!r}; join two skills or two topics among the domains of this world by "
                    f"{JOIN!r}: {', '.join(sorted(skills))}; {', '.join(sorted(self._topic_names))}"
                )
            if skills >= set(parts) and not needs_both(*parts):
                raise ConfigError(f"data.compounds holds {name!r}, which {parts[1]!r} alone answers; leave it out")

    def load(self) -> Corpus:
        """Needs neither files nor a network."""
        topics = [_TOPICS[name] for name in self.domains if name in _TOPICS]
        domains = tuple(self._domains())
        by_name = {domain.name: domain for domain in domains}
        return Corpus(
            (*domains, *(self._compound(name, by_name) for name in self.compounds)),
            general(seed=self.seed, num_narratives=self.narratives, num_readings=self.readings),
            unknown(
                topics or TOPICS,
                seed=self.seed,
                num_documents=self.documents_per_domain * self.shards,
                num_train=self.unknown_train,
                num_test=self.unknown_test,
            ),
        )

    def forms(self) -> dict[str, str]:
        """In the words of the templates; one name may be a form of letters and another one of records."""
        facts = {form: f"facts: {phrasing.form_in_words(form)}" for form in phrasing.FORMS}
        of_letters = letters.TRAIN_FORMS + letters.VALIDATION_FORMS + letters.TEST_FORMS
        rows = {form: f"letters: {letters.form_in_words(form)}" for form in of_letters} if self._skills else {}
        of_records = records.TRAIN_FORMS + records.VALIDATION_FORMS + records.TEST_FORMS
        news = {form: f"records: {records.form_in_words(form)}" for form in of_records if "summaries" in self.domains}
        names = dict.fromkeys([*facts, *rows, *news])
        return {name: " / ".join(found[name] for found in (facts, rows, news) if name in found) for name in names}

    @property
    def _skills(self) -> set[str]:
        return {name for name in self.domains if name in SKILLS}

    def _domains(self) -> Iterator[Domain]:
        if self.shards == 1:
            yield from (self._domain(name) for name in self.domains)
            return
        for shard in range(self.shards):
            yield from (self._shard(_TOPICS[name], shard) for name in self.domains if name in _TOPICS)
        yield from (self._domain(name) for name in self.domains if name not in _TOPICS)

    @property
    def _topic_names(self) -> set[str]:
        topics = [_TOPICS[name] for name in self.domains if name in _TOPICS]
        if self.shards == 1:
            return {topic.name for topic in topics}
        return {shard_name(topic, shard) for topic in topics for shard in range(self.shards)}

    def _compound(self, name: str, domains: Mapping[str, Domain]) -> Domain:
        first, second = name.split(JOIN)
        numbers = {"seed": self.seed, "num_train": self.items_train, "num_test": self.items_test}
        if first in SKILLS:
            return two_skills(first, second, **numbers)
        return two_questions(domains[first], domains[second], **numbers)

    def _shard(self, topic: Topic, shard: int) -> Domain:
        return knowledge(
            topic,
            seed=self.seed,
            num_documents=self.documents_per_domain,
            paraphrases=self.paraphrases,
            shard=shard,
            shards=self.shards,
        )

    def _domain(self, name: str) -> Domain:
        if name == "summaries":
            return summaries(seed=self.seed, num_train=self.items_train, num_test=self.items_test)
        if name in SKILLS:
            return skill(name, seed=self.seed, num_train=self.items_train, num_test=self.items_test)
        return knowledge(
            _TOPICS[name], seed=self.seed, num_documents=self.documents_per_domain, paraphrases=self.paraphrases
        )
