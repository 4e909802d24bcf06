"""Figures of versions and policies of tags, kept in the journal of a bank."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import final

from pmemx.core.access import Permission
from pmemx.core.errors import ConfigError
from pmemx.core.event import Action
from pmemx.core.metric import Figure
from pmemx.core.promotion import Fall, Promotions
from pmemx.core.tag_policy import TagPolicy, policy_values
from pmemx.store import catalogue, protection
from pmemx.store.bank import Bank
from pmemx.store.references import check_tag


@final
@dataclass(frozen=True)
class Evaluations(Promotions):
    """Recording needs the permission to write the block; protecting a tag, which binds every block, to administer the bank."""

    bank: Bank

    def record(self, reference: str, scores: Mapping[str, Figure], *, by: str = "") -> tuple[Fall, ...]:
        """See Promotions.record. Figures of a frozen block are recorded, but its tags stay, which the journal notes.

        Raises ConfigError for no figure or one that is not finite, UnknownBlock, AccessDenied.
        """
        _check(reference, scores)
        with self.bank.ledger.writing() as now:
            found = catalogue.resolve(now, reference, Permission.WRITE)
            kept = {metric: asdict(figure) for metric, figure in scores.items()}
            now.append(Action.EVALUATE, found.full, {"number": found.version.number, "scores": kept, "by": by})
            return protection.roll_back_unfit(now, found, scores)

    def of(self, reference: str) -> dict[str, Figure]:
        """See Promotions.of."""
        with self.bank.ledger.reading() as now:
            found = catalogue.resolve(now, reference)
            return catalogue.scores(now, found.block, found.version.number)

    def protect(self, tag: str, policy: TagPolicy) -> None:
        """See Promotions.protect; an equal policy adds nothing. Raises ConfigError for what is no tag, AccessDenied."""
        check_tag(tag)
        with self.bank.ledger.writing() as now:
            now.require(Permission.ADMINISTER)
            if protection.policies(now).get(tag) != policy:
                now.append(Action.PROTECT, None, {"tag": tag, "policy": policy_values(policy)})

    def unprotect(self, tag: str) -> None:
        """See Promotions.unprotect."""
        with self.bank.ledger.writing() as now:
            now.require(Permission.ADMINISTER)
            if tag in protection.policies(now):
                now.append(Action.UNPROTECT, None, {"tag": tag})

    def policies(self) -> dict[str, TagPolicy]:
        """See Promotions.policies; whoever can open the bank may know them."""
        with self.bank.ledger.reading() as now:
            return protection.policies(now)


def _check(reference: str, scores: Mapping[str, Figure]) -> None:
    if not scores:
        raise ConfigError(f"no figure is given to record for {reference!r}; give one or more by metric")
    for metric, figure in scores.items():
        if not metric.strip() or not metric.isprintable():
            raise ConfigError(f"the name of a metric is visible text on one line, got {metric!r}; rename it")
        for name, value in asdict(figure).items():
            if value is not None and not math.isfinite(value):
                raise ConfigError(
                    f"{metric} of {reference!r} has {name} {value}, and only finite numbers are kept; measure it again"
                )
        if figure.low is not None and figure.high is not None and figure.low > figure.high:
            raise ConfigError(
                f"{metric} of {reference!r} has an interval from {figure.low} to {figure.high}; give the low end first"
            )
