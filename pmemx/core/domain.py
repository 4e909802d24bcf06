"""What an expert learns from: examples, the domain they form, and the corpus of all domains of a run."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from pmemx.core.errors import DataError

JOIN = "+"
"""Stands between the experts in the name of a domain whose prompts take several at once: "law+engineering"."""


def joined_parts(name: str, experts: Collection[str]) -> tuple[str, ...]:
    """The experts that a domain's name joins; empty for a name that joins fewer than two, or one that is no expert."""
    parts = tuple(name.split(JOIN))
    return parts if len(parts) > 1 and all(part in experts for part in parts) else ()


def joins_expert(name: str, experts: Collection[str]) -> bool:
    """Whether a domain's name is an expert's, or joins one with anything else."""
    return any(part in experts for part in name.split(JOIN))


@dataclass(frozen=True)
class Example:
    """One prompt with its exact answer.

    document: what a teacher reads in context before the prompt; empty when the prompt stands alone.
    group: the unit of splits and of statistics (usually one document); intervals are clustered by it.
    form: the phrasing of the prompt ("question-3"), so that scores can be reported form by form.
    """

    id: str
    prompt: str
    response: str
    document: str = ""
    group: str = ""
    form: str = ""


@dataclass(frozen=True)
class Document:
    """One text that an expert may absorb whole; `paraphrases` say the same in other words and order."""

    id: str
    text: str
    paraphrases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Domain:
    """A named body of examples in three disjoint splits.

    train holds the prompts that a distillation may show (reliability is measured on them); test holds
    phrasings or items that no training sees (generality). chance is the exact-match rate of a guesser that knows the
    form of an answer and nothing else. instruction tells in one line what the domain is about.
    """

    name: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    documents: tuple[Document, ...] = ()
    chance: float = 0.0
    family: str = "text"
    instruction: str = ""

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            if not getattr(self, split):
                raise DataError(f"domain {self.name!r} has no {split} example; give it one or leave the domain out")

    @property
    def has_documents(self) -> bool:
        """True when every training prompt comes with the document that answers it."""
        return all(example.document for example in self.train)

    @property
    def tests_new_documents(self) -> bool:
        """True when tested prompts have documents, none of which a training prompt has."""
        read = {example.document for example in self.train}
        tested = {example.document for example in self.test if example.document}
        return bool(tested) and tested.isdisjoint(read)


@dataclass(frozen=True)
class Corpus:
    """All domains of a run, with the bodies of text that belong to no domain.

    general: the base model's own text; its train split may be used as locality prompts and to teach a
    gate to abstain, its test split measures forgetting. unknown: prompts in the manner of the domains that no
    expert can answer; a gate should send them to no expert (responses may be empty). negatives: text of many kinds that no
    expert covers, from which a gate learns that "no expert" is more than the base model's own text; answers to it do not
    count.
    """

    domains: tuple[Domain, ...]
    general: Domain
    unknown: Domain | None = None
    negatives: Domain | None = None

    def __post_init__(self) -> None:
        names = [domain.name for domain in self]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"domain names must be unique, but {', '.join(twice)} occur more than once; rename one")

    def __iter__(self) -> Iterator[Domain]:
        """Every domain, then general text, then the unknown prompts and the negatives where there are any."""
        yield from self.domains
        yield self.general
        yield from (domain for domain in (self.unknown, self.negatives) if domain is not None)

    def map(self, change: Callable[[Domain], Domain]) -> "Corpus":
        """The same corpus with every domain of it changed."""
        return Corpus(
            tuple(change(domain) for domain in self.domains),
            change(self.general),
            None if self.unknown is None else change(self.unknown),
            None if self.negatives is None else change(self.negatives),
        )

    def domain(self, name: str) -> Domain:
        """The domain of that name, general and unknown included."""
        for domain in self:
            if domain.name == name:
                return domain
        raise DataError(f"no domain {name!r}; there are {', '.join(d.name for d in self)}")


class DomainSource(ABC):
    """Where a corpus comes from: a generator, files, or a Hub dataset. A frozen dataclass of settings."""

    @abstractmethod
    def load(self) -> Corpus:
        """Read or generate the corpus; the same settings give the same corpus."""

    def forms(self) -> Mapping[str, str]:
        """What prompts of each form say, by the form's name; empty where the names say it themselves."""
        return {}
