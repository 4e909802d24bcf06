"""What evidence says to a claim of the literature."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

from pmemx.core.evidence import Evidence
from pmemx.core.metric import Metric

Outcome = Literal["reproduced", "not reproduced", "not testable"]


@dataclass(frozen=True)
class Verdict:
    """claim: its key. why: the differences that decided, with their intervals, or what the evidence lacks."""

    claim: str
    statement: str
    source: str
    outcome: Outcome
    why: str


class Judge(Metric):
    """A metric that also comes to verdicts."""

    @abstractmethod
    def verdicts(self, evidence: Evidence) -> tuple[Verdict, ...]:
        """One verdict a claim, in the order of the claims."""
