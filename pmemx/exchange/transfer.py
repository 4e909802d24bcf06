"""Copying a block with its history from one bank to another: the one act behind pull and push."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmemx.core.access import Permission
from pmemx.core.card import Version
from pmemx.core.errors import ConfigError, CorruptBlock, Diverged, IllegalTransition, IncompatibleBlock, UnknownBlock
from pmemx.core.event import Action, Event
from pmemx.core.lifecycle import State, check_open
from pmemx.core.metric import Figure
from pmemx.core.objects import Objects
from pmemx.core.redaction import REDACTED, is_redacted
from pmemx.store import catalogue, changes, exchanged
from pmemx.store.bank import Bank
from pmemx.store.catalogue import Found
from pmemx.store.engine import is_server
from pmemx.store.exchanged import Signature
from pmemx.store.leaving import Parcel, note, parcel, permit
from pmemx.store.ledger import Transaction
from pmemx.store.local_objects import LocalObjects
from pmemx.store.manifest import Manifest
from pmemx.store.projection import block_id
from pmemx.store.protection import roll_back_unfit
from pmemx.store.references import LATEST, Name, check_name, check_namespace, check_tag
from pmemx.store.shown import shown
from pmemx.store.tiered_objects import TieredObjects

_MOST = 2**31 - 1
"""What a count in a ledger may be."""


@dataclass(frozen=True)
class Transfer:
    """What a copy changed in the target.

    version: what was asked for, as the target has it. added: digests of the versions that it had not, oldest first.
    tags: those that moved, and the numbers they point at now. scores, signatures: how many came along.
    """

    version: Version
    added: tuple[str, ...]
    tags: Mapping[str, int]
    scores: int
    signatures: int

    @property
    def changed(self) -> bool:
        """Whether the target is another than before."""
        return bool(self.added or self.tags or self.scores or self.signatures)


@dataclass(frozen=True)
class _Offer:
    """What a bank has to give, from one look at it. called: what the target's journal may tell of the name."""

    name: Name
    called: str
    parcels: tuple[Parcel, ...]
    expires: Mapping[int, int]
    tags: Mapping[str, int]
    scores: Mapping[str, dict[str, Any]]  # details of entries, by the hash of the entry that was the first to tell them
    signatures: tuple[Signature, ...]
    origin: dict[str, Any]

    @property
    def digests(self) -> tuple[str, ...]:
        return tuple(one.found.version.digest for one in self.parcels)


@dataclass(frozen=True)
class _Plan:
    """What of an offer the target lacks. held: how many versions it has already."""

    held: int
    tags: Mapping[str, int]
    scores: Mapping[str, dict[str, Any]]
    signatures: tuple[Signature, ...]

    def empty(self, offer: _Offer) -> bool:
        return not (self.held < len(offer.parcels) or self.tags or self.scores or self.signatures)


def copy(
    source: Bank,
    target: Bank,
    reference: str,
    *,
    into: Name | None = None,
    tags: Sequence[str] | None = (),
    redacted: bool = False,
    base: str = "",
    to: str = "",
) -> Transfer:
    """Copy a block's history up to a version: manifests and weights byte for byte, messages, scores, signatures, tags.

    into: its name in the target, by default the same in the target's own namespace. tags: which to bring along, None for
    all; a tag that points elsewhere in the target moves. redacted: with every card and message masked, hence under other
    digests and without signatures. base: the fingerprint that the card must carry. to: what the source's journal calls
    the target, by default its path. Principals and grants stay where they are, and so does the state of the block.

    The target's history must be the beginning of the source's, or go on from it; otherwise Diverged is raised.
    Neither may have expired and begun again. Objects are whole in their place before one transaction makes all of it
    visible: a copy that is interrupted leaves nothing to be seen, and is repeated. Within one bank, from namespace to
    namespace, nothing leaves, so that sensitivity is not asked.

    Raises AccessDenied, CorruptBlock, IncompatibleBlock, IllegalTransition, UnknownBlock, ConfigError, StorageError.
    """
    inside = _same(source, target)
    offer = _offer(source, reference, tags, redacted=redacted, inside=inside)
    asked = offer.parcels[-1]
    card = asked.found.version.card
    if base and card.base != base:
        raise IncompatibleBlock(
            f"block {offer.name}@{asked.found.version.number} was made on base {card.base[:12] or 'unknown'} "
            f"({card.base_name}), not on {base[:12]}; pull a version that was distilled on that"
        )
    name = into or Name(target.namespace, offer.name.name)
    check_namespace(name.namespace)
    check_name(name.name)
    if inside and name == offer.name:
        raise ConfigError(f"{name} would be copied onto itself; give another namespace or name")
    with target.ledger.reading() as now:
        now.require(Permission.WRITE, name)
        plan = _plan(now, name, offer)
        if plan.empty(offer):
            return _transfer(now, name, offer, plan)
    fresh = offer.parcels[plan.held :]
    if fresh and not inside:
        leaving = [one.original for one in fresh]
        there = {"bank": target.ledger.bank_id(), "name": str(name)}
        note(source, leaving, to=to or shown(str(target.path)), redacted=redacted, detail=there)
    manifests = {one.found.version.number: _put(source, target, one) for one in fresh}
    with target.ledger.writing() as now:
        now.require(Permission.WRITE, name)
        plan = _plan(now, name, offer)
        for one in offer.parcels[plan.held :]:
            manifest = manifests[one.found.version.number]
            # The collector holds this lock while it deletes; whatever it took since is put again.
            if not all(target.objects.has(digest) for digest in (manifest.weights, one.found.version.digest)):
                _put(source, target, one)
            expires = offer.expires[one.found.version.number]
            changes.adopt(now, name, one.found, manifest, message=one.found.message, expires=expires)
        if not plan.empty(offer):
            _tell(now, name, offer, plan)
        return _transfer(now, name, offer, plan)


def _same(one: Bank, other: Bank) -> bool:
    """Whether two are one bank: a ledger may be opened beside any folder, and what is put there has left the bank."""
    return _location(one) == _location(other) and _place(one.objects) == _place(other.objects)


def _location(bank: Bank) -> str:
    """Where a bank's ledger is, the same for every way to write its path."""
    place = bank.ledger.location
    return place if is_server(place) else str(Path(place).resolve())


def _place(objects: Objects) -> Objects:
    """Where objects are, the same for every way to write a path."""
    if isinstance(objects, TieredObjects):
        return TieredObjects(_place(objects.warm), _place(objects.cold))
    return LocalObjects(objects.path.resolve()) if isinstance(objects, LocalObjects) else objects


def _offer(source: Bank, reference: str, tags: Sequence[str] | None, *, redacted: bool, inside: bool) -> _Offer:
    with source.ledger.reading() as now:
        asked = catalogue.resolve(now, reference)
        history = catalogue.history(now, asked.full)[: asked.version.number]
        _check_one_life(now, asked.block, history)
        if not inside:
            permit(now, history, redacted=redacted)
        wanted = _wanted(asked.full, asked.version.number, catalogue.pointers(now, asked.block), tags)
        expires = exchanged.expiries(now, asked.block)
        entries = exchanged.evaluations(now, asked.full)
        signed = exchanged.signatures(now, [found.version.digest for found in history])
        seq, head = now.head
        origin = {"bank": exchanged.bank_id(now), "uid": exchanged.uid_of(now, asked.block), "seq": seq, "hash": head}
    parcels = tuple(parcel(source, found, redacted=redacted) for found in history)
    # A signature is over the original's bytes.
    kept = {one.found.version.digest for one in parcels}
    scores = {_first_told(entry): _score(entry, figures_only=redacted) for entry in entries}
    scores = {entry: detail for entry, detail in scores.items() if detail["number"] <= asked.version.number}
    return _Offer(
        asked.full,
        asked.full.name if redacted else str(asked.full),  # a namespace names a person or a team
        parcels,
        expires,
        wanted,
        scores,
        tuple(one for one in signed if one.digest in kept),
        origin,
    )


def _wanted(name: Name, number: int, known: Mapping[str, int], tags: Sequence[str] | None) -> dict[str, int]:
    if tags is None:
        return {tag: where for tag, where in sorted(known.items()) if tag != LATEST and where <= number}
    for tag in tags:
        check_tag(tag)
        if tag not in known:
            raise UnknownBlock(f"{name} has no tag {tag!r} in the source; its tags: {_listed(known)}")
        if known[tag] > number:
            raise UnknownBlock(
                f"tag {tag!r} of {name} points at version {known[tag]}, past version {number} that is copied; copy that one"
            )
    return {tag: known[tag] for tag in tags}


def _listed(known: Mapping[str, int]) -> str:
    return ", ".join(sorted(known.keys() - {LATEST})) or "none"


def _first_told(entry: Event) -> str:
    """What a record of scores is known by in every bank: the hash of the entry that was the first to tell it."""
    told = entry.detail.get("from")
    return str(told["entry"]) if isinstance(told, Mapping) and "entry" in told else entry.hash


def _score(entry: Event, *, figures_only: bool) -> dict[str, Any]:
    """The detail of an entry as another bank keeps it. Raises CorruptBlock for what are no figures."""
    detail = entry.detail
    try:
        figures = {metric: vars(Figure(**figure)) for metric, figure in detail["scores"].items()}
        number = int(detail["number"])
    except (TypeError, AttributeError, KeyError, ValueError, OverflowError) as error:
        raise CorruptBlock(f"entry {entry.seq} of the source's journal holds no scores ({error}); verify it") from error
    values = (value for figure in figures.values() for value in figure.values() if value is not None)
    # Compared, since an integer may be too large for a float.
    odd = [value for value in values if not (isinstance(value, int | float) and abs(value) <= sys.float_info.max)]
    if odd:
        raise CorruptBlock(
            f"entry {entry.seq} of the source's journal scores {odd[0]!r:.40}, which is no finite number; verify it"
        )
    counts = (number, *(figure[field] for figure in figures.values() for field in ("n", "clusters")))
    if odd := [count for count in counts if not (isinstance(count, int) and 0 <= count <= _MOST)]:
        raise CorruptBlock(
            f"entry {entry.seq} of the source's journal counts {odd[0]!r:.40}, which is no number from 0 to {_MOST}; verify it"
        )
    rest = {} if figures_only else dict(detail)
    told = {"entry": _first_told(entry), "at": entry.at}
    return rest | {"number": number, "scores": figures, "from": rest.get("from", told)}


def _plan(now: Transaction, name: Name, offer: _Offer) -> _Plan:
    """What the target lacks. Raises Diverged with the first difference."""
    block = block_id(now.connection, name.namespace, name.name)
    if block is None:
        return _Plan(0, offer.tags, offer.scores, offer.signatures)
    _check_no_tombstone(now, name, block)
    held = catalogue.history(now, name)
    _check_one_life(now, block, held)
    mine = [found.version for found in held]
    for version, digest in zip(mine, offer.digests, strict=False):
        if version.digest != digest:
            raise Diverged(
                f"{name} holds {version.digest[:12]} as version {version.number}, the source's {offer.name} has "
                f"{digest[:12]} there{_redaction(version, offer)}; take it in under another name or namespace"
            )
    known = catalogue.pointers(now, block)
    told = {_first_told(entry) for entry in exchanged.evaluations(now, name)}
    signed = {(one.digest, one.key) for one in exchanged.signatures(now, offer.digests)}
    return _Plan(
        min(len(mine), len(offer.digests)),
        {tag: number for tag, number in offer.tags.items() if known.get(tag) != number},
        {entry: detail for entry, detail in offer.scores.items() if entry not in told},
        tuple(one for one in offer.signatures if (one.digest, one.key) not in signed),
    )


def _check_no_tombstone(now: Transaction, name: Name, block: int) -> None:
    """Raises IllegalTransition for a name of which only a tombstone is left: its old versions have no bytes any more."""
    state = catalogue.state_of(now, block)
    if state is State.EXPIRED:
        check_open(str(name), state, "a pull")


def _check_one_life(now: Transaction, block: int, history: Sequence[Found]) -> None:
    """Raises IllegalTransition for a block that expired and began again: of what it was before no bytes may be left."""
    former = [found for found in history if found.seq <= catalogue.last_expiry(now, block)]
    if former:
        last = former[-1]
        raise IllegalTransition(
            f"{last.full} expired after version {last.version.number} and began again, and a history is copied whole or "
            "not at all; put its present version under another name, whose history begins there, and copy that"
        )


def _redaction(mine: Version, offer: _Offer) -> str:
    theirs = offer.parcels[mine.number - 1]
    if theirs.original.version.digest == mine.digest:
        return ", which is the same redacted"
    if is_redacted(mine.card) and mine.card.extra[REDACTED]["original"] == theirs.found.version.digest:
        return ", of which the former is the redacted form"
    return ""


def _put(source: Bank, target: Bank, one: Parcel) -> Manifest:
    contents = one.open(source)
    for data in (contents.weights, contents.encoded):
        target.objects.put(data)
    return contents.manifest


def _tell(now: Transaction, name: Name, offer: _Offer, plan: _Plan) -> None:
    """Entries for whatever a copy brings beside versions, and for the copy itself."""
    numbers = {digest: number for number, digest in enumerate(offer.digests, 1)}
    for one in plan.signatures:
        detail = {"number": numbers[one.digest], "digest": one.digest, "key": one.key, "bundle": one.bundle}
        now.append(Action.SIGN, name, detail)
    block = block_id(now.connection, name.namespace, name.name)
    assert block is not None
    for detail in plan.scores.values():
        now.append(Action.EVALUATE, name, detail)
        # What another bank measured binds the tags here as if it had been measured here.
        figures = {metric: Figure(**figure) for metric, figure in detail["scores"].items()}
        roll_back_unfit(now, catalogue.at_number(now, block, detail["number"]), figures)
    for tag, number in plan.tags.items():
        changes.tag(now, catalogue.at_number(now, block, number), tag, reason=f"copied from {offer.called}")
    told = {
        "from": offer.origin | {"name": offer.called, "number": len(offer.parcels)},
        "digests": list(offer.digests[plan.held :]),
        "tags": dict(plan.tags),
        "scores": len(plan.scores),
        "signatures": len(plan.signatures),
    }
    now.append(Action.PULL, name, told)


def _transfer(now: Transaction, name: Name, offer: _Offer, plan: _Plan) -> Transfer:
    block = block_id(now.connection, name.namespace, name.name)
    assert block is not None
    version = catalogue.at_number(now, block, len(offer.parcels)).version
    return Transfer(version, offer.digests[plan.held :], dict(plan.tags), len(plan.scores), len(plan.signatures))
