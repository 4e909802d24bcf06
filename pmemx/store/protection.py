"""What a protected tag demands: no version takes it that does not fit, and none keeps it that an evaluation finds unfit."""

import json
from collections.abc import Mapping

from sqlalchemy import select

from pmemx.core.errors import PolicyRefused
from pmemx.core.event import Action
from pmemx.core.lifecycle import State
from pmemx.core.metric import Figure
from pmemx.core.promotion import Fall
from pmemx.core.tag_policy import TagPolicy, judge, policy_from
from pmemx.store import catalogue, schema
from pmemx.store.catalogue import Found
from pmemx.store.ledger import Transaction

TRIGGER = "evaluation"
"""What stands as `trigger` in the entries of an automatic rollback."""


def policies(now: Transaction) -> dict[str, TagPolicy]:
    """The policy of every protected tag, sorted by tag."""
    rows = schema.policies
    held = select(rows.c.tag, rows.c.policy).where(rows.c.since <= now.moment, rows.c.until > now.moment)
    return {row.tag: policy_from(json.loads(row.policy)) for row in now.connection.execute(held.order_by(rows.c.tag))}


def require_fit(now: Transaction, found: Found, tag: str) -> None:
    """Raises PolicyRefused, with every figure, where the tag is protected and the version does not meet its policy."""
    policy = policies(now).get(tag)
    if policy is None:
        return
    # Were only the tag's present version asked, taking the tag away first would void every relative bound.
    number = _last_pointed(now, found.block, tag)
    current = catalogue.scores(now, found.block, number) if number not in (0, found.version.number) else None
    verdict = judge(policy, catalogue.scores(now, found.block, found.version.number), current)
    if not verdict.allowed:
        raise PolicyRefused(
            f"version {found.version.number} of {found.full} may not take the protected tag {tag!r}: "
            f"{'; '.join(verdict.findings)}; tag a version that fits, or scale this one down"
        )


def roll_back_unfit(now: Transaction, found: Found, measured: Mapping[str, Figure]) -> tuple[Fall, ...]:
    """Move protected tags away from a version of which figures were just recorded that break their bounds.

    Bounds on other metrics, and relative ones, are left aside: no evaluation of this version can have broken them now. A
    frozen block keeps its tags, and the journal notes that it should have lost them. Whoever may record may do this.
    """
    return tuple(
        _leave(now, found, tag, policy, number, reason)
        for tag, policy in policies(now).items()
        if (number := _pointed(now, found, tag)) and (reason := _broken(now, found, policy, measured))
    )


def _last_pointed(now: Transaction, block: int, tag: str) -> int:
    """The version of the block's present life that a tag points at, or did when it was taken away, 0 for none."""
    tags, versions = schema.tags, schema.versions
    query = (
        select(tags.c.number)
        .join(versions, (versions.c.block == tags.c.block) & (versions.c.number == tags.c.number))
        .where(tags.c.block == block, tags.c.tag == tag, catalogue.living(now.moment))
        .order_by(tags.c.since.desc())
        .limit(1)
    )
    return now.connection.execute(query).scalar() or 0


def _pointed(now: Transaction, found: Found, tag: str) -> int:
    """The version behind a tag where its bytes are those of the found one, else 0."""
    number = catalogue.number_behind(now, found.block, tag)
    rows = schema.versions
    query = select(rows.c.digest).where(rows.c.block == found.block, rows.c.number == number)
    return number if now.connection.execute(query).scalar() == found.version.digest else 0


def _broken(now: Transaction, found: Found, policy: TagPolicy, measured: Mapping[str, Figure]) -> str:
    """The figures that break a policy, empty where none does."""
    figures = catalogue.scores(now, found.block, found.version.number)
    verdict = judge(policy.absolute(measured.keys()), figures)
    return "" if verdict.allowed else "; ".join(verdict.findings)


def _leave(now: Transaction, found: Found, tag: str, policy: TagPolicy, number: int, broken: str) -> Fall:
    reason = f"an evaluation of version {number} breaks what {tag!r} demands: {broken}"
    said = {"tag": tag, "reason": reason, "trigger": TRIGGER}
    if catalogue.state_of(now, found.block) is State.FROZEN:
        reason = f"{reason}; the block is frozen and keeps the tag until it is thawed and moved by hand"
        now.append(Action.REFUSED, found.full, said | {"number": number, "reason": reason})
        return Fall(tag, number, number, reason)
    target = _newest_fitting(now, found.block, tag, policy, number)
    if target is None:
        now.append(Action.UNTAG, found.full, said)
    else:
        now.append(Action.TAG, found.full, said | {"number": target})
    return Fall(tag, number, target, reason)


def _newest_fitting(now: Transaction, block: int, tag: str, policy: TagPolicy, before: int) -> int | None:
    """The highest version below `before` that the tag pointed at and whose figures meet every absolute bound."""
    tags, versions = schema.tags, schema.versions
    query = (
        select(tags.c.number)
        .distinct()
        .join(versions, (versions.c.block == tags.c.block) & (versions.c.number == tags.c.number))
        .where(tags.c.block == block, tags.c.tag == tag, tags.c.number < before)
        .where(catalogue.living(now.moment))
        .order_by(tags.c.number.desc())
    )
    numbers = now.connection.execute(query).scalars().all()
    fits = (number for number in numbers if judge(policy.absolute(), catalogue.scores(now, block, number)).allowed)
    return next(fits, None)
