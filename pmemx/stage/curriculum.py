"""Curricula: which adapters are trained on which domains, in which order."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from pmemx.core.domain import Domain


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
    """One adapter a domain: what a bank is made of."""

    def courses(self, domains: Sequence[Domain]) -> tuple[Course, ...]:
        """As many courses as domains."""
        return tuple(Course(domain.name, ((domain,),)) for domain in domains)


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
