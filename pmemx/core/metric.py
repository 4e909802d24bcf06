"""The interface of metrics: evidence to named figures, each with its sample size and interval."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from pmemx.core.evidence import Evidence


@dataclass(frozen=True)
class Figure:
    """One measured number.

    low, high: 95 % interval, clustered by group. n: questions. clusters: independent groups among them.
    floor: what chance gives. ceiling: what the teacher with the document in context gives. None where it has no meaning.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0
    clusters: int = 0
    floor: float | None = None
    ceiling: float | None = None


class Metric(ABC):
    """A named measure. A frozen dataclass of its settings; the order of domains in the evidence is irrelevant to it."""

    @abstractmethod
    def __call__(self, evidence: Evidence) -> dict[str, Figure]:
        """Figures by name ("gate/finance"); a measure that the evidence does not allow is left out, never zero."""
