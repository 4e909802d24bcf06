"""The interface through which figures decide which versions may take which tags; imports no torch."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from pmemx.core.metric import Figure
from pmemx.core.tag_policy import TagPolicy


@dataclass(frozen=True)
class Fall:
    """A protected tag whose version was evaluated and no longer meets the policy.

    number: the version that the tag pointed at. now: the version that it points at since; None where it was withdrawn
    because no earlier one fits, and `number` still where the block is frozen. reason: with the figures.
    """

    tag: str
    number: int
    now: int | None
    reason: str


class Promotions(ABC):
    """Figures of versions, policies of tags, and what follows from both."""

    @abstractmethod
    def record(self, reference: str, scores: Mapping[str, Figure], *, by: str = "") -> tuple[Fall, ...]:
        """Keep figures of a version by metric, the newest of a metric counting. by: what measured them.

        A protected tag that points at the version and whose bounds on these metrics it breaks is rolled back in the same
        transaction: to the newest earlier version that the tag pointed at and whose figures meet every bound that is not
        relative, or away where there is none. Returns what was rolled back.
        """

    @abstractmethod
    def of(self, reference: str) -> dict[str, Figure]:
        """The newest figure of every metric that was recorded for a version, or for another one of the same bytes."""

    @abstractmethod
    def protect(self, tag: str, policy: TagPolicy) -> None:
        """Let only versions that meet a policy take a tag, of any block, in place of the policy that it had.

        Where the tag points already is left alone until it is evaluated.
        """

    @abstractmethod
    def unprotect(self, tag: str) -> None:
        """Let every version take a tag; one without a policy is no error."""

    @abstractmethod
    def policies(self) -> dict[str, TagPolicy]:
        """The policy of every protected tag."""
