"""Answers in a bank's journal: what produced each, and in which a version took part."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Row, select

from pmemx.core.access import Permission
from pmemx.core.canonical import canonical_json
from pmemx.core.clock import from_microseconds
from pmemx.core.errors import ConfigError, CorruptBlock, UnknownAnswer, UnknownBlock
from pmemx.core.event import Action
from pmemx.core.lifecycle import State
from pmemx.core.provenance import Provenance, Share
from pmemx.store import catalogue, schema
from pmemx.store.bank import Bank
from pmemx.store.catalogue import Found
from pmemx.store.ledger import Transaction
from pmemx.store.life import MOST_RELEVANCE, note_use
from pmemx.store.references import Name, split_namespace

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"[0-9a-f]{1,64}")


@dataclass(frozen=True)
class Part:
    """A version that took part in an answer, and how its block stands now. name: with its namespace."""

    name: str
    number: int
    digest: str
    weight: float
    state: State


@dataclass(frozen=True)
class Traced:
    """An answer as the bank knows it. parts: by weight, the largest first. seq, time, principal: of the entry that noted it."""

    provenance: Provenance
    parts: tuple[Part, ...]
    seq: int
    time: datetime
    principal: str


@dataclass(frozen=True)
class Answers:
    """Provenance of answers, and the uses that follow from it.

    negligible: a version with less weight than this in an answer is in its provenance, but was not used by it.
    """

    bank: Bank
    negligible: float = 0.01

    def note(self, provenance: Provenance, *, relevance: float = 1.0) -> str:
        """Keep an answer's provenance and count a use of every version in it; returns the answer's id.

        relevance: how well the answer served; that of a use is this times the size of the version's weight. An answer that
        was noted already adds nothing. Raises AccessDenied without EXECUTE on every block (on the bank's namespace where
        there is none), UnknownBlock for a version that the bank does not hold, ConfigError.
        """
        if not 0 <= relevance <= MOST_RELEVANCE:
            raise ConfigError(f"the relevance of an answer is {relevance}; give a number from 0 to {MOST_RELEVANCE:g}")
        answer = provenance.id
        with self.bank.ledger.writing() as now:
            if not provenance.shares:
                now.require(Permission.EXECUTE, Name(self.bank.namespace, ""))
            served: dict[tuple[int, int], tuple[Found, float]] = {}
            for share in provenance.shares:
                found = _served(now, share)
                key = found.block, found.version.number
                # One version may be served under two names.
                before = served[key][1] if key in served else 0.0
                served[key] = found, before + share.weight
            rows = schema.answers
            if now.connection.execute(select(rows.c.seq).where(rows.c.id == answer)).first() is None:
                self._append(now, provenance, list(served.values()), relevance)
        return answer

    def trace(self, answer: str) -> Traced:
        """Which versions of which blocks produced an answer, by its id or the beginning of one.

        Raises UnknownAnswer, also without READ on every block (on the bank's namespace where there is none), and
        CorruptBlock when what the bank holds is not what the id stands for.
        """
        with self.bank.ledger.reading() as now:
            row = _row(now, answer)
            parts = tuple(_parts(now, row.id))
            if not self._readable(now, parts):
                raise _no_answer(answer)
        return _traced(row, parts)

    def by_block(self, reference: str, *, limit: int = 100) -> tuple[str, ...]:
        """Ids of the answers in which a version had a share, however small, newest first. Raises UnknownBlock, AccessDenied."""
        rows = schema.shares
        with self.bank.ledger.reading() as now:
            found = catalogue.resolve(now, reference)
            query = select(rows.c.answer).where(rows.c.block == found.block, rows.c.number == found.version.number)
            query = query.where(rows.c.seq <= now.moment).order_by(rows.c.seq.desc()).limit(limit)
            return tuple(now.connection.execute(query).scalars())

    def recent(self, *, limit: int = 50) -> tuple[Traced, ...]:
        """Answers newest first; of the last thousand those alone that `trace` would tell of."""
        rows, journal = schema.answers, schema.journal
        wanted = select(rows.c.id, rows.c.seq, rows.c.detail, journal.c.at, journal.c.principal)
        query = wanted.join(journal, journal.c.seq == rows.c.seq).order_by(rows.c.seq.desc()).limit(1000)
        traced: list[Traced] = []
        with self.bank.ledger.reading() as now:
            for row in now.connection.execute(query.where(rows.c.seq <= now.moment)).all():
                parts = tuple(_parts(now, row.id))
                if self._readable(now, parts):
                    traced.append(_traced(row, parts))
                if len(traced) >= limit:
                    break
        return tuple(traced)

    def _readable(self, now: Transaction, parts: Sequence[Part]) -> bool:
        names = [split_namespace(part.name) for part in parts] or [Name(self.bank.namespace, "")]
        return all(now.identity.decide(Permission.READ, name).allowed for name in names)

    def _append(
        self, now: Transaction, provenance: Provenance, served: Sequence[tuple[Found, float]], relevance: float
    ) -> None:
        parts = [
            {
                "namespace": found.version.namespace,
                "name": found.version.name,
                "number": found.version.number,
                "weight": weight,
            }
            for found, weight in served
        ]
        now.append(Action.ANSWER, None, {"id": provenance.id, "provenance": provenance.values(), "parts": parts})
        for found, weight in served:
            if abs(weight) >= self.negligible:
                note_use(now, found, count=1, relevance=relevance * abs(weight))


def _served(now: Transaction, share: Share) -> Found:
    """The version that a share names by its digest: that of the block it was served under, else the newest."""
    if not _DIGEST.fullmatch(share.version):
        raise UnknownBlock(
            f"{share.block!r} was served as version {share.version!r}, which is no digest of a version in the bank; "
            f"load it into the model with the digest as its version"
        )
    named = split_namespace(share.block, now.home)
    same = [found for found in catalogue.with_digest(now, share.version) if found.full == named]
    if same and catalogue.state_of(now, same[-1].block) is not State.EXPIRED:
        now.require(Permission.EXECUTE, named, sensitivity=same[-1].version.card.sensitivity)
        return same[-1]
    return catalogue.resolve(now, share.version, Permission.EXECUTE)


def _row(now: Transaction, prefix: str) -> Row:
    rows, journal = schema.answers, schema.journal
    query = (
        select(rows.c.id, rows.c.seq, rows.c.detail, journal.c.at, journal.c.principal)
        .join(journal, journal.c.seq == rows.c.seq)
        .where(rows.c.id >= prefix, rows.c.id < prefix + "g", rows.c.seq <= now.moment)
        .limit(2)
    )
    found = now.connection.execute(query).all() if _PREFIX.fullmatch(prefix) else []
    if not found:
        raise _no_answer(prefix)
    if len(found) > 1:
        raise UnknownAnswer(f"several answers begin with {prefix!r}; give all 64 digits of an id")
    return found[0]


def _no_answer(prefix: str) -> UnknownAnswer:
    return UnknownAnswer(f"no answer that was noted begins with {prefix!r}; give all 64 digits of an id")


def _traced(row: Row, parts: tuple[Part, ...]) -> Traced:
    provenance = Provenance.from_json(canonical_json(json.loads(row.detail)["provenance"]))
    if provenance.id != row.id:
        raise CorruptBlock(f"answer {row.id} was edited: its provenance has another id; run `pmemx bank verify`")
    return Traced(provenance, parts, row.seq, from_microseconds(row.at), row.principal)


def _parts(now: Transaction, answer: str) -> list[Part]:
    rows, versions, blocks = schema.shares, schema.versions, schema.blocks
    query = (
        select(rows.c.block, rows.c.number, rows.c.weight, versions.c.digest, blocks.c.namespace, blocks.c.name)
        .join(versions, (versions.c.block == rows.c.block) & (versions.c.number == rows.c.number))
        .join(blocks, blocks.c.id == rows.c.block)
        .where(rows.c.answer == answer)
        .order_by(rows.c.weight.desc(), blocks.c.namespace, blocks.c.name)
    )
    return [
        Part(
            str(Name(row.namespace, row.name)),
            row.number,
            row.digest,
            row.weight,
            catalogue.state_of(now, row.block),
        )
        for row in now.connection.execute(query)
    ]
