"""A seeded world: domains of knowledge, skills and summaries with exact answers, and the text that belongs to none."""

from collections.abc import Sequence
from dataclasses import dataclass

from pmemx.core.domain import Corpus, Domain, DomainSource
from pmemx.core.errors import ConfigError
from pmemx.data.world.general import general
from pmemx.data.world.knowledge import knowledge, unknown
from pmemx.data.world.letters import SKILLS
from pmemx.data.world.names import TOPICS
from pmemx.data.world.skills import skill
from pmemx.data.world.summaries import summaries

_TOPICS = {topic.name: topic for topic in TOPICS}
DOMAINS = (*_TOPICS, "summaries", *SKILLS)


@dataclass(frozen=True, kw_only=True)
class ProceduralWorld(DomainSource):
    """The same settings give the same bytes; one more domain leaves the other domains as they are.

    domains: names out of DOMAINS, in the order of the corpus. documents_per_domain: entities with a fact sheet, five
    facts each, in every domain of knowledge. paraphrases: other renderings of each document; 0 is the known negative
    control, in which knowledge is memorised and cannot be extracted. The rest are numbers of prompts.
    """

    seed: int = 0
    domains: Sequence[str] = DOMAINS
    documents_per_domain: int = 8
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
        for name, low, high in (("documents_per_domain", 1, 64), ("paraphrases", 0, 64)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"data.{name}={getattr(self, name)} is outside {low}..{high}; choose a value inside")

    def load(self) -> Corpus:
        """Needs neither files nor a network."""
        topics = [_TOPICS[name] for name in self.domains if name in _TOPICS]
        return Corpus(
            tuple(self._domain(name) for name in self.domains),
            general(seed=self.seed, num_narratives=self.narratives, num_readings=self.readings),
            unknown(
                topics or TOPICS,
                seed=self.seed,
                num_documents=self.documents_per_domain,
                num_train=self.unknown_train,
                num_test=self.unknown_test,
            ),
        )

    def _domain(self, name: str) -> Domain:
        if name == "summaries":
            return summaries(seed=self.seed, num_train=self.items_train, num_test=self.items_test)
        if name in SKILLS:
            return skill(name, seed=self.seed, num_train=self.items_train, num_test=self.items_test)
        return knowledge(
            _TOPICS[name], seed=self.seed, num_documents=self.documents_per_domain, paraphrases=self.paraphrases
        )
