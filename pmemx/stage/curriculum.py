"""Curricula: which adapters are trained on which domains, in which order."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from pmemx.core.domain import Domain
from pmemx.core.errors import ConfigError
from pmemx.stage.build import did_you_mean


@dataclass(frozen=True)
class Course:
    """One adapter: trained on each phase in turn, with a version of its block after each.

    rank_factor multiplies the adapter's rank, for a baseline with as many parameters as a whole bank.
    """

    name: str
    phases: tuple[tuple[Domain, ...], ...]
    rank_factor: int = 1


class Curriculum(ABC):
    """From domains to courses. A frozen dataclass."""

    @abstractmethod
    def courses(self, domains: Sequence[Domain]) -> tuple[Course, ...]:
        """The adapters to train, the longest first."""


@dataclass(frozen=True)
class Experts(Curriculum):
    """One adapter a domain: what a bank is made of.

    without: domains that get none. They stay in the corpus, so that methods are asked what no expert of the bank was taught;
    gates do not learn from them, and the right choice for them is no expert.
    """

    without: tuple[str, ...] = ()

    def courses(self, domains: Sequence[Domain]) -> tuple[Course, ...]:
        """As many courses as domains with an expert.

        Raises ConfigError for a name that no domain has, and where no domain is left.
        """
        known = {domain.name for domain in domains}
        if unknown := sorted(set(self.without) - known):
            raise ConfigError(
                f"experts.without names {unknown[0]!r}, which no domain is called{did_you_mean(unknown[0], known)}"
            )
        if known and known <= set(self.without):
            raise ConfigError(
                f"experts.without names every domain ({', '.join(sorted(known))}); leave some to be experts"
            )
        return tuple(Course(domain.name, ((domain,),)) for domain in domains if domain.name not in self.without)


@dataclass(frozen=True)
class Sequential(Curriculum):
    """One adapter for all domains, one after the other: the baseline that forgets (arXiv:1801.10112)."""

    name: str = "sequential"

    def courses(self, domains: Sequence[Domain]) -> tuple[Course, ...]:
        """One course of as many phases as domains."""
        return (Course(self.name, tuple((domain,) for domain in domains)),)


@dataclass(frozen=True)
class Joint(Curriculum):
    """One adapter on the mixture of all domains, with the parameters and the steps of all experts together."""

    name: str = "joint"

    def courses(self, domains: Sequence[Domain]) -> tuple[Course, ...]:
        """One course of one phase, at the rank of all experts together."""
        return (Course(self.name, (tuple(domains),), rank_factor=len(domains)),)


@dataclass(frozen=True)
class Clusters(Curriculum):
    """One adapter a cluster of domains, at the rank of one expert: the library of model-based clustering (arXiv:2405.11157).

    clusters: names of domains, each in one cluster; the stage `library` finds some. A course is called by its domains, so
    that a cluster of one is the expert of that domain, and is not trained again.
    """

    clusters: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        named = [name for cluster in self.clusters for name in cluster]
        if not all(self.clusters):
            raise ConfigError("clusters holds one without a domain; leave it out")
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise ConfigError(f"clusters name {twice[0]!r} twice; a domain belongs to one cluster")

    def courses(self, domains: Sequence[Domain]) -> tuple[Course, ...]:
        """As many courses as clusters; domains in the order of the corpus.

        Raises ConfigError for a name that no domain has, and for a domain in no cluster.
        """
        known = {domain.name for domain in domains}
        named = {name for cluster in self.clusters for name in cluster}
        if unknown := sorted(named - known):
            raise ConfigError(
                f"clusters name {unknown[0]!r}, which no domain is called{did_you_mean(unknown[0], known)}"
            )
        if missing := sorted(known - named):
            raise ConfigError(
                f"clusters leave {', '.join(missing)} out; give every domain a cluster, its own if need be"
            )
        groups = [tuple(domain for domain in domains if domain.name in cluster) for cluster in self.clusters]
        groups.sort(key=len, reverse=True)
        return tuple(Course(_called(group), (group,)) for group in groups)


def _called(group: tuple[Domain, ...]) -> str:
    # Short, since the name of a block has a greatest length; its first domain tells a cluster from the others.
    names = [domain.name for domain in group]
    return "+".join(names if len(names) <= 3 else [*names[:2], f"{len(names) - 2} more"])
