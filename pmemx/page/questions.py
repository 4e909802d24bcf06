"""What the page asks a bank, answered in JSON types: the pages show nothing that their JSON twins do not tell."""

from collections.abc import Mapping
from dataclasses import asdict
from enum import StrEnum
from typing import Any, TypeVar

from pmemx.core.access import Permission
from pmemx.core.card_json import card_values
from pmemx.core.errors import ConfigError
from pmemx.core.event import Action
from pmemx.core.lifecycle import State
from pmemx.core.metric import Figure
from pmemx.page.words import iso
from pmemx.store import catalogue
from pmemx.store.bank import Bank
from pmemx.store.catalogue import Found, Listing
from pmemx.store.evaluations import Evaluations
from pmemx.store.journal import Entry, Journal
from pmemx.store.ledger import NOW, Transaction
from pmemx.store.life import Life
from pmemx.store.lineage import Lineage, lineage_of
from pmemx.store.members import Members
from pmemx.store.references import LATEST, Name
from pmemx.store.schema import NEVER
from pmemx.store.signing import bundles_of
from pmemx.store.snapshots import Snapshots

Json = dict[str, Any]
ROWS = 100
"""How many lines a page holds."""
Word = TypeVar("Word", bound=StrEnum)
_SUGGESTIONS = 200
_SORTS = ("name", "newest", "uses", "size")


def experts(
    bank: Bank,
    *,
    text: str = "",
    state: str = "",
    domain: str = "",
    base: str = "",
    tag: str = "",
    sort: str = "name",
    page: int = 1,
) -> Json:
    """One page of the blocks that the principal may read. base: the name of a base model, or how its fingerprint begins."""
    states = None if not state else [_one_of(State, state, "state")]
    where = {name: value for name, value in (("domain", domain), ("base", base), ("tag", tag)) if value}
    with bank.ledger.reading() as now:
        time = now.now
        lines = catalogue.listing(now, states=states, where=where, text=text)
    if sort == "newest":
        lines.sort(key=lambda line: line.created, reverse=True)
    elif sort in ("uses", "size"):
        lines.sort(key=lambda line: getattr(line, sort), reverse=True)
    elif sort != "name":
        raise ConfigError(f"blocks are sorted by {', '.join(_SORTS)}, got {sort!r}; choose one")
    pages = max(1, -(-len(lines) // ROWS))
    page = min(page, pages)
    return {
        "filters": {"text": text, "state": state, "domain": domain, "base": base, "tag": tag, "sort": sort},
        "total": len(lines),
        "page": page,
        "pages": pages,
        "blocks": [_line(line, time) for line in lines[(page - 1) * ROWS : page * ROWS]],
        "domains": sorted({line.domain for line in lines})[:_SUGGESTIONS],
        "bases": sorted({line.base_shown for line in lines})[:_SUGGESTIONS],
    }


def block(bank: Bank, name: str, *, below: int | None = None) -> Json:
    """A block: its card, its standing, what may be done to it, its versions with their scores, and its life.

    below: only versions with a smaller number, for the next page.
    """
    full = bank.full(name)
    with bank.ledger.reading() as now:
        key = catalogue.block_of(now, full)
        state = catalogue.state_of(now, key)
        tags = {tag: number for tag, number in catalogue.pointers(now, key).items() if tag != LATEST}
        usage = catalogue.usage(now, key)
        history = catalogue.history(now, full)
        shown = [found for found in reversed(history) if below is None or found.version.number < below][:ROWS]
        versions = [_version(now, found, tags, usage) for found in shown]
        latest = history[-1].version
        allowed = [
            permission.value
            for permission in Permission
            if now.identity.decide(permission, full, sensitivity=latest.card.sensitivity).allowed
        ]
    journal = Journal(bank)
    newest = shown[0].seq + 1 if shown else None
    commits = journal.entries(name, action=Action.COMMIT, before=newest, limit=ROWS)
    for row, event in zip(versions, commits, strict=False):
        row["committed"] = _who(event)
    moves = journal.entries(name, action=Action.MOVE, limit=ROWS)
    return {
        **_named(full),
        "state": state.value,
        "standing": None if state is State.EXPIRED else Life(bank).standing(name),
        "permissions": allowed,
        "tags": dict(sorted(tags.items())),
        "latest": latest.number,
        "card": card_values(latest.card),
        "versions": versions,
        "older": shown[-1].version.number if shown and shown[-1].version.number > 1 else None,
        "life": [_who(event) | dict(event.detail) for event in moves],
        "entries": [entry(event) for event in journal.entries(name, limit=10)],
        "policies": sorted(Evaluations(bank).policies()),
    }


def version(bank: Bank, name: str, number: int) -> tuple[Json, Lineage]:
    """A version, 0 for the latest: its card, sites, digests, signatures and scores; and where it stands in its lineage."""
    full = bank.full(name)
    with bank.ledger.reading() as now:
        found = found_at(now, full, number)
        own = found.version
        tags = {tag: at for tag, at in catalogue.pointers(now, found.block).items() if tag != LATEST}
        values = _version(now, found, tags, catalogue.usage(now, found.block))
        signatures = sorted(bundles_of(now, own.digest))
        graph = lineage_of(now, found, limit=60)
        latest = catalogue.history_end(now, found.block).version.number if now.moment == NOW else None
        state = catalogue.state_of(now, found.block)
    # From the ledger's bytes, not from its tables: what is corrupt is refused and not shown.
    manifest = bank.manifest_of(found)
    (committed,) = Journal(bank).entries(name, action=Action.COMMIT, before=found.seq + 1, limit=1)
    return _named(full) | values | {
        "state": state.value,
        "committed": _who(committed),
        "newer": own.number + 1 if latest is not None and own.number < latest else None,
        "card": card_values(manifest.card),
        "sites": [asdict(site) for site in manifest.sites],
        "signatures": signatures,
        "lineage": {
            "nodes": [asdict(node) | {"key": node.key} for node in graph.nodes],
            "edges": [asdict(edge) for edge in graph.edges],
        },
    }, graph  # fmt: skip


def journal(bank: Bank, *, name: str = "", action: str = "", principal: str = "", before: int | None = None) -> Json:
    """One page of the audit trail, newest first."""
    wanted = None if not action else _one_of(Action, action, "action")
    events = Journal(bank).entries(name, action=wanted, principal=principal, before=before, limit=ROWS + 1)
    return {
        "filters": {"name": name, "action": action, "principal": principal},
        "actions": [item.value for item in Action],
        "entries": [entry(event) for event in events[:ROWS]],
        "next": events[ROWS - 1].seq if len(events) > ROWS else None,
    }


def members(bank: Bank) -> Json:
    """Everybody whom the bank knows, and what protects its tags. Asks ADMINISTER."""
    found = Members(bank).list()
    policies = Evaluations(bank).policies()
    return {
        "members": [
            {
                "name": member.name,
                "guarded": member.guarded,
                "revoked": member.revoked,
                "roles": [{"role": grant.role.value, "scope": grant.scope} for grant in member.grants],
            }
            for member in found
        ],
        "policies": {tag: [asdict(bound) for bound in policy.bounds] for tag, policy in policies.items()},
    }


def snapshots(bank: Bank) -> Json:
    """Named moments of the bank, newest first."""
    found = Snapshots(bank).list()
    return {"snapshots": [asdict(snapshot) for snapshot in reversed(found)]}


def found_at(now: Transaction, name: Name, number: int) -> Found:
    """A version by its number, 0 for the latest. A reference would not do: another block may be called "law@1"."""
    if not number:
        number = catalogue.number_behind(now, catalogue.block_of(now, name), LATEST)
    return catalogue.numbered(now, name, number)


def figures(scores: Mapping[str, Figure]) -> Json:
    """Figures in JSON types."""
    return {metric: asdict(figure) for metric, figure in sorted(scores.items())}


def entry(event: Entry) -> Json:
    """An entry of the journal in JSON types."""
    return _who(event) | {
        "action": event.action,
        "namespace": event.namespace,
        "name": catalogue.full_name(event.namespace, event.name) if event.name else "",
        "detail": dict(event.detail),
        "hash": event.hash,
    }


def _who(event: Entry) -> Json:
    return {"entry": event.seq, "time": iso(event.at), "principal": event.principal}


def _named(name: Name) -> Json:
    return {"name": catalogue.full_name(name.namespace, name.name), "namespace": name.namespace}


def _version(
    now: Transaction, found: Found, tags: Mapping[str, int], usage: Mapping[int, tuple[int, int, float]]
) -> Json:
    own = found.version
    uses, last, relevance = usage.get(own.number, (0, 0, 0.0))
    return {
        "number": own.number,
        "digest": own.digest,
        "weights": found.weights,
        "size": found.size,
        "message": found.message,
        "restores": own.restores,
        "tags": sorted(tag for tag, number in tags.items() if number == own.number),
        "uses": uses,
        "last_used": iso(last or None),
        "relevance": relevance if uses else None,
        "scores": figures(catalogue.scores(now, found.block, own.number)),
        "card_metrics": dict(sorted(own.card.metrics.items())),
    }


def _line(line: Listing, time: int) -> Json:
    return line._asdict() | {
        "name": line.full_name,
        "tags": list(line.tags),
        "other_tags": dict(line.other_tags),
        "expires": None if line.expires == NEVER else iso(line.expires),
        "overdue": line.expires <= time and line.state not in (State.ARCHIVED, State.EXPIRED, State.FROZEN),
        "last_used": iso(line.last_used or None),
    }


def _one_of(words: type[Word], text: str, what: str) -> Word:
    if text not in set(words):
        raise ConfigError(f"the {what} {text!r} is none of {', '.join(words)}; choose one of them")
    return words(text)
