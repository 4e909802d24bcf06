"""Questions to a ledger: which blocks, versions, tags and states there are, now or at an earlier moment."""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import ColumnElement, Row, Select, and_, func, or_, select

from pmemx.core.access import EVERYTHING, PERMISSIONS, Permission
from pmemx.core.card import Version
from pmemx.core.card_json import card_from
from pmemx.core.errors import ConfigError, UnknownBlock
from pmemx.core.lifecycle import SELECTABLE, State
from pmemx.core.metric import Figure
from pmemx.store import schema
from pmemx.store.conditions import condition, held, shown_tag
from pmemx.store.ledger import Transaction, readable_time
from pmemx.store.projection import FACETS, block_id
from pmemx.store.references import LATEST, SHARED, Name, looks_like_digest, split_namespace

_Query = TypeVar("_Query", bound=Select)
_V, _B, _T, _S, _U = schema.versions, schema.blocks, schema.tags, schema.states, schema.uses


# Up to so many blocks a list asks for the tags and uses of these, above for all.
_FEW = 500


class Listing(NamedTuple):
    """One line of a list of blocks: a block, its latest version, and how it stands.

    expires, last_used: microseconds since 1970, last_used 0 for never, expires far away for never. uses: of all versions.
    tags: those that point at this version. other_tags: those that point at an earlier one, with its number.
    """

    namespace: str
    name: str
    number: int
    digest: str
    domain: str
    base: str
    base_name: str
    semantic_type: str
    origin: str
    licence: str
    sensitivity: str
    made_by: str
    created: str
    rank: int
    sites: int
    size: int
    state: str
    uid: str
    expires: int
    uses: int
    last_used: int
    tags: tuple[str, ...]
    other_tags: tuple[tuple[str, int], ...]

    @property
    def full_name(self) -> str:
        """With the namespace in front, unless that is the shared one."""
        return full_name(self.namespace, self.name)

    @property
    def base_shown(self) -> str:
        """What a reader sees of the base: its name, or how its fingerprint begins."""
        return self.base_name or self.base[:12]

    @property
    def tags_shown(self) -> tuple[str, ...]:
        """Every tag of the block, those of an earlier version with its number: "stable@1"."""
        return (*map(shown_tag, self.tags), *(shown_tag(tag, number) for tag, number in self.other_tags))


@dataclass(frozen=True)
class Found:
    """A version as the ledger knows it. block: the key of its block's row; seq: the entry that committed it."""

    version: Version
    block: int
    seq: int
    weights: str
    size: int
    message: str

    @property
    def full(self) -> Name:
        """The name of its block."""
        return Name(self.version.namespace, self.version.name)


def full_name(namespace: str, name: str, home: str = SHARED) -> str:
    """A reference to a block for whoever is at home in a namespace, as short as it may be."""
    return name if namespace == home else f"{namespace}/{name}"


def resolve(now: Transaction, reference: str, permission: Permission = Permission.READ) -> Found:
    """The version behind a reference: [namespace/]name[@number, @tag or @latest], or a digest of 12 digits or more.

    A name that exists is a name first. Of versions with one digest the newest is meant. Raises UnknownBlock, AccessDenied.
    """
    name = split_namespace(reference, now.home)
    if (block := _born(now, name)) is not None:
        return _numbered(now, name, block, LATEST, permission)
    front, at, which = reference.rpartition("@")
    name = split_namespace(front, now.home)
    if at and (block := _born(now, name)) is not None:
        return _numbered(now, name, block, which, permission)
    if looks_like_digest(reference):
        return _by_digest(now, reference, permission)
    raise _unknown(now, split_namespace(front if at else reference, now.home), permission)


def numbered(now: Transaction, name: Name, number: int, permission: Permission = Permission.READ) -> Found:
    """The version of a block with that number. Raises UnknownBlock, AccessDenied."""
    block = _born(now, name)
    if block is None:
        raise _unknown(now, name, permission)
    return _numbered(now, name, block, number, permission)


def block_of(now: Transaction, name: Name, permission: Permission = Permission.READ) -> int:
    """The key of a block's row. Raises UnknownBlock, AccessDenied."""
    block = _born(now, name)
    if block is None:
        raise _unknown(now, name, permission)
    latest = _version_row(now, block, number_behind(now, block, LATEST))
    now.require(permission, name, sensitivity=latest.sensitivity)
    return block


def history(now: Transaction, name: Name) -> tuple[Found, ...]:
    """Every version of a block, oldest first."""
    return versions_of(now, block_of(now, name))


def versions_of(now: Transaction, block: int) -> tuple[Found, ...]:
    """The same by the block's key, whoever asks."""
    query = _select_versions().where(_V.c.block == block, _V.c.seq <= now.moment).order_by(_V.c.number)
    return tuple(_found(row) for row in now.connection.execute(query))


def sensitivity_of(now: Transaction, name: Name) -> str:
    """The sensitivity of a block's latest version, whoever asks. Raises UnknownBlock."""
    block = _born(now, name)
    if block is None:
        raise _unknown(now, name, Permission.READ)
    return _version_row(now, block, number_behind(now, block, LATEST)).sensitivity


def history_end(now: Transaction, block: int) -> Found:
    """The latest version of a block, whoever asks."""
    return _found(_version_row(now, block, number_behind(now, block, LATEST)))


def at_number(now: Transaction, block: int, number: int) -> Found:
    """A version of a block by its number, which it must have, whoever asks."""
    return _found(_version_row(now, block, number))


def pointers(now: Transaction, block: int) -> dict[str, int]:
    """Tags of a block and the numbers they point at, "latest" among them."""
    query = select(_T.c.tag, _T.c.number).where(_T.c.block == block, held(now, _T))
    return {row.tag: row.number for row in now.connection.execute(query)}


def number_behind(now: Transaction, block: int, tag: str) -> int:
    """The version a tag points at, 0 where there is no such tag."""
    query = select(_T.c.number).where(_T.c.block == block, _T.c.tag == tag, held(now, _T))
    return now.connection.execute(query).scalar() or 0


def living(moment: int) -> ColumnElement[bool]:
    """Whether a row of versions is of the life that its block had at a moment: made by then, but not before it last expired."""
    return and_(_V.c.seq <= moment, _V.c.seq > _expiry(moment, _V.c.block).correlate(_V).scalar_subquery())


def last_expiry(now: Transaction, block: int) -> int:
    """The entry at which a block last expired, 0 where it never did: of versions before it only the history is left."""
    return now.connection.execute(_expiry(now.moment, block)).scalar_one()


def state_of(now: Transaction, block: int) -> State:
    """The state of a block."""
    query = select(_S.c.state).where(_S.c.block == block, held(now, _S))
    return State(now.connection.execute(query).scalar_one())


def listing(
    now: Transaction,
    *,
    states: Iterable[State] | None = None,
    where: Mapping[str, str] | None = None,
    text: str = "",
    after: Name | None = None,
    limit: int | None = None,
) -> list[Listing]:
    """Latest versions that the principal may read, by namespace and name.

    states: only blocks in these. where: values by column of the list or field of the card, see
    pmemx.store.conditions. text: what a name, a domain or a base's name must contain, whatever the case. after, limit: a page,
    of so many lines after that block. Raises ConfigError for what neither has.
    """
    query = select(
        _B.c.namespace, _B.c.name, _V.c.number, _V.c.digest, *(_V.c[facet] for facet in FACETS),
        _V.c.rank, _V.c.sites, _V.c.size, _S.c.state, _B.c.uid, _V.c.expires, _B.c.id,
    )  # fmt: skip
    query = _restricted(_of_latest(query, now), now)
    if states is not None:
        query = query.where(_S.c.state.in_([state.value for state in states]))
    for path, value in (where or {}).items():
        query = query.where(condition(now, path, value))
    if text:
        pattern = f"%{text.replace('!', '!!').replace('%', '!%').replace('_', '!_')}%"
        query = query.where(
            or_(*(column.ilike(pattern, escape="!") for column in (_B.c.name, _V.c.domain, _V.c.base_name)))
        )
    if limit is not None and not 1 <= limit < 2**31:
        raise ConfigError(f"a page has at least 1 line, got {limit}; give a larger limit, or none for all")
    if after is not None or limit is not None:
        query = _page(now, query, after, limit)
    rows = now.connection.execute(query).all()
    few = [block for *_, block in rows] if len(rows) <= _FEW else None
    tags, uses = _tags_by_block(now, few), _uses_by_block(now, few)
    found = []
    for *line, block in rows:
        own = tags.get(block, ())
        here = tuple(tag for tag, number in own if number == line[2]) if own else ()
        others = tuple(one for one in own if one[1] != line[2]) if own else ()
        found.append(Listing._make((*line, *uses.get(block, (0, 0)), here, others)))
    found.sort()  # by namespace and name, which no two have in common
    return found


def selectable(now: Transaction, *, time: int) -> list[tuple[str, str]]:
    """Namespace and name of the blocks that the principal may read and a router may choose; time: for their TTL."""
    query = (
        _of_latest(select(_B.c.namespace, _B.c.name), now)
        .where(_S.c.state.in_([state.value for state in SELECTABLE]))
        .where(or_(_V.c.expires > time, _S.c.state == State.FROZEN.value))
    )
    return [(namespace, name) for namespace, name in now.connection.execute(_restricted(query, now))]


def scores(now: Transaction, block: int, number: int) -> dict[str, Figure]:
    """The newest figure of every metric that was recorded for a version, or for another one with its bytes."""
    rows = schema.scores
    digest = select(_V.c.digest).where(_V.c.block == block, _V.c.number == number).scalar_subquery()
    same = select(_V.c.number).where(_V.c.block == block, _V.c.digest == digest)
    query = (
        select(rows)
        .where(rows.c.block == block, rows.c.number.in_(same), rows.c.seq <= now.moment)
        .order_by(rows.c.seq)
    )
    names = [item.name for item in fields(Figure)]
    return {row.metric: Figure(**{name: getattr(row, name) for name in names}) for row in now.connection.execute(query)}


def usage(now: Transaction, block: int) -> dict[int, tuple[int, int, float]]:
    """Uses, the last of them (microseconds since 1970) and their mean relevance, by version."""
    query = select(_U.c.number, _U.c.count, _U.c.last, _U.c.relevance).where(_U.c.block == block)
    rows = now.connection.execute(query)
    return {number: (count, last, relevance / count) for number, count, last, relevance in rows}


def descendants(now: Transaction, digest: str) -> list[Found]:
    """Versions that were made from one, that the principal may read."""
    rows = schema.parents
    query = (
        _select_versions()
        .join(rows, and_(rows.c.block == _V.c.block, rows.c.number == _V.c.number))
        .where(rows.c.parent == digest, _V.c.seq <= now.moment)
        .order_by(_V.c.seq)
    )
    return [_found(row) for row in now.connection.execute(_restricted(query, now))]


def with_digest(now: Transaction, digest: str) -> list[Found]:
    """Versions of exactly that digest that the principal may read, oldest first."""
    query = _select_versions().where(_V.c.digest == digest, _V.c.seq <= now.moment).order_by(_V.c.seq)
    return [_found(row) for row in now.connection.execute(_restricted(query, now))]


def _of_latest(query: _Query, now: Transaction) -> _Query:
    """The query over every block with its latest version and its state."""
    return (
        query.join(_T, and_(_T.c.block == _B.c.id, _T.c.tag == LATEST, held(now, _T)))
        .join(_V, and_(_V.c.block == _B.c.id, _V.c.number == _T.c.number))
        .join(_S, and_(_S.c.block == _B.c.id, held(now, _S)))
    )


def _page(now: Transaction, query: Select[Any], after: Name | None, limit: int | None) -> Select[Any]:
    # By code points, as SQLite and Python sort; PostgreSQL would ask the language of its database.
    server = now.connection.dialect.name == "postgresql"
    space, name = (column.collate("C") if server else column for column in (_B.c.namespace, _B.c.name))
    if after is not None:
        later = and_(space == after.namespace, name > after.name)
        query = query.where(or_(space > after.namespace, later))
    return query.order_by(space, name).limit(limit)


def _born(now: Transaction, name: Name) -> int | None:
    block = block_id(now.connection, name.namespace, name.name)
    return block if block is not None and block <= now.moment else None


def _numbered(now: Transaction, name: Name, block: int, which: str | int, permission: Permission) -> Found:
    known = pointers(now, block)
    count = known[LATEST]
    if isinstance(which, int):
        number = which
    else:
        number = int(which) if which.isdecimal() and len(which) < 10 else known.get(which, 0)
    exists = 1 <= number <= count
    row = _version_row(now, block, number if exists else count)
    now.require(permission, name, sensitivity=row.sensitivity)
    if not exists:
        tags = sorted(known.keys() - {LATEST})
        listed = f" and tags {', '.join(tags)}" if tags else ""
        raise UnknownBlock(f"{str(name)!r} has versions 1 to {count}{listed}, but no {str(which)!r}; name one of them")
    return _alive(now, _found(row))


def _by_digest(now: Transaction, prefix: str, permission: Permission) -> Found:
    query = _select_versions().where(_V.c.digest >= prefix, _V.c.digest < prefix + "g", _V.c.seq <= now.moment)
    found = [_found(row) for row in now.connection.execute(_restricted(query, now).order_by(_V.c.seq))]
    digests = {one.version.digest for one in found}
    if len(digests) != 1:
        many = f"{len(digests)} versions begin" if digests else "no version begins"
        raise UnknownBlock(f"{many} with digest {prefix}; give a name, or all 64 digits")
    decisions = [now.identity.decide(permission, one.full, sensitivity=one.version.card.sensitivity) for one in found]
    allowed = [one for one, decision in zip(found, decisions, strict=True) if decision.allowed]
    if not allowed:
        decisions[-1].enforce()
    alive = [one for one in allowed if one.seq > last_expiry(now, one.block)]
    return _alive(now, (alive or allowed)[-1])


def _alive(now: Transaction, found: Found) -> Found:
    seq = last_expiry(now, found.block)
    if found.seq > seq:
        return found
    journal = schema.journal
    entry = now.connection.execute(select(journal.c.at, journal.c.principal).where(journal.c.seq == seq)).one()
    expired = f"expired at {readable_time(entry.at)} (entry {seq}, by {entry.principal})"
    if state_of(now, found.block) is State.EXPIRED:
        raise UnknownBlock(
            f"block {found.full} {expired}; "
            "only this tombstone is left; commit a new version under its name to begin again"
        )
    raise UnknownBlock(
        f"version {found.version.number} of {found.full} belongs to a life that {expired}; name a version made since"
    )


def _expiry(moment: int, block: int | ColumnElement[int]) -> Select[Any]:
    expired = and_(_S.c.block == block, _S.c.state == State.EXPIRED.value, _S.c.since <= moment)
    return select(func.coalesce(func.max(_S.c.since), 0)).where(expired)


def _unknown(now: Transaction, name: Name, permission: Permission) -> Exception:
    if not now.identity.decide(Permission.READ, name).allowed:
        # Whoever may not read a name is not told whether it exists.
        now.require(permission, name)
    names = [full_name(line.namespace, line.name, now.home) for line in listing(now)]
    near = difflib.get_close_matches(full_name(name.namespace, name.name, now.home), names, n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"the bank holds {len(names)} blocks"
    return UnknownBlock(f"no block {full_name(name.namespace, name.name, now.home)!r}; {hint}")


def _select_versions() -> Select[Any]:
    return select(_V, _B.c.namespace, _B.c.name).join(_B, _B.c.id == _V.c.block)


def _version_row(now: Transaction, block: int, number: int) -> Row[Any]:
    return now.connection.execute(_select_versions().where(_V.c.block == block, _V.c.number == number)).one()


def _found(row: Row[Any]) -> Found:
    card = card_from(json.loads(row.card))
    version = Version(row.name, row.number, row.digest, card, row.restores, row.namespace)
    return Found(version, row.block, row.seq, row.weights, row.size, row.message)


def _restricted(query: _Query, now: Transaction) -> _Query:
    """Only what the principal may read."""
    identity = now.identity
    if not identity.governed:
        return query
    if not identity.known or identity.revoked:
        return query.where(_B.c.id < 0)
    roles = [role for role, gives in PERMISSIONS.items() if Permission.READ in gives]
    if any(grant.scope == EVERYTHING and grant.role in roles for grant in identity.grants):
        return query
    # Asked of the table, since a principal may have more grants than a statement takes values.
    held = schema.grants
    scopes = select(held.c.scope).where(
        held.c.principal == identity.principal, held.c.until == schema.NEVER, held.c.role.in_(roles)
    )
    own = _B.c.namespace == f"user:{identity.principal}"
    full = _B.c.namespace + "/" + _B.c.name
    return query.where(or_(own, _B.c.namespace.in_(scopes), full.in_(scopes)))


def _tags_by_block(now: Transaction, blocks: Sequence[int] | None) -> dict[int, tuple[tuple[str, int], ...]]:
    """Tags with the numbers that they point at, by block and sorted; of those blocks, or of all."""
    # Not "!=", for which no database uses an index.
    others = or_(_T.c.tag < LATEST, _T.c.tag > LATEST)
    query = select(_T.c.block, _T.c.tag, _T.c.number).where(others, held(now, _T))
    if blocks is not None:
        query = query.where(_T.c.block.in_(blocks))
    found: dict[int, list[tuple[str, int]]] = {}
    for block, tag, number in now.connection.execute(query):
        found.setdefault(block, []).append((tag, number))
    return {block: tuple(sorted(pairs)) for block, pairs in found.items()}


def _uses_by_block(now: Transaction, blocks: Sequence[int] | None) -> dict[int, tuple[int, int]]:
    """Uses and the last of them by block; of those blocks, or of all."""
    query = select(_U.c.block, _U.c.count, _U.c.last)
    if blocks is not None:
        query = query.where(_U.c.block.in_(blocks))
    found: dict[int, tuple[int, int]] = {}
    for block, count, last in now.connection.execute(query):
        before, earlier = found.get(block, (0, 0))
        found[block] = (before + count, max(earlier, last))
    return found
