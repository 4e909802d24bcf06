"""Verbs that look: list, names, show, log, audit, diff, lineage and trace."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pmemx.cli_bank.opening import open_bank, place
from pmemx.cli_bank.printing import print_fields, print_json, print_line, print_table
from pmemx.cli_bank.verbs import REFERENCE, Verbs
from pmemx.core.errors import ConfigError
from pmemx.core.event import Action
from pmemx.core.lifecycle import State
from pmemx.exit_codes import DONE

if TYPE_CHECKING:
    from pmemx.core.card_diff import Change
    from pmemx.store.bank import Bank
    from pmemx.store.catalogue import Listing
    from pmemx.store.journal import Entry

_TOLD_APART = ("card", "bundle", "provenance", "parts", "from", "token")
"""Details of an entry that are too long for a line; --json has them."""


def add_verbs(verbs: Verbs) -> None:
    """Declare them."""
    listing = verbs.add("list", _list, "every block's latest version; expired blocks only when --state asks for them")
    listing.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help='only where a column of the list has the value that it shows, or a field of the card or "extra.<field>" that '
        "value; may be said again",
    )
    listing.add_argument("--limit", type=int, help="at most so many lines (default: all)")
    listing.add_argument(
        "--after", default="", metavar="NAME", help="only what comes after this block, for the next page"
    )
    listing.add_argument("--text", default="", help="only where a name, a domain or a base's name contains this")
    listing.add_argument(
        "--state",
        action="append",
        choices=[state.value for state in State],
        help="only in this state; may be said again",
    )
    verbs.add("names", _names, "references to the blocks that a router may choose, one a line")
    verbs.add("show", _show, "one version in full: its card, and how it stands").add_argument(
        "reference", help=REFERENCE
    )
    log = verbs.add("log", _log, "the versions of a block, with who, when and why; without a name, the journal")
    _add_entry_options(log)
    _add_entry_options(verbs.add("audit", _audit, "the journal, newest entry first: who did what to which block"))
    comparing = verbs.add("diff", _diff, "what differs between two versions: card, updates and scores")
    comparing.add_argument("before", help=REFERENCE)
    comparing.add_argument("after", help=REFERENCE)
    comparing.add_argument("--card", action="store_true", help="cards and scores alone, without reading weights")
    family = verbs.add("lineage", _lineage, "where a version comes from, and what was made from it")
    family.add_argument("reference", help=REFERENCE)
    family.add_argument("--steps", type=int, default=8, help="how far to go (default: 8)")
    verbs.add("trace", _trace, "which versions of which blocks produced an answer").add_argument(
        "answer", help="the id of an answer, or its beginning"
    )


def _add_entry_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", default="", help="a block (default: the whole bank)")
    parser.add_argument(
        "--action", type=Action, choices=list(Action), metavar="ACTION", help=f"one of {', '.join(Action)}"
    )
    parser.add_argument("--principal", dest="by", default="", metavar="WHO", help="only what this principal did")
    parser.add_argument("--before", type=int, metavar="ENTRY", help="only older entries, for the next page")
    parser.add_argument("--limit", type=int, default=100, help="at most so many (default: 100)")


def _last_used(line: "Listing") -> str:
    from pmemx.store.ledger import readable_time

    return readable_time(line.last_used) if line.last_used else ""


COLUMNS: Mapping[str, Callable[["Listing"], object]] = MappingProxyType(
    {
        "name": lambda line: line.full_name,
        "version": lambda line: line.number,
        "domain": lambda line: line.domain,
        "base": lambda line: line.base_shown,
        "rank": lambda line: line.rank,
        "bytes": lambda line: line.size,
        "state": lambda line: line.state,
        "uses": lambda line: line.uses,
        "last used": _last_used,
        "tags": lambda line: line.tags_shown,
        "digest": lambda line: line.digest[:12],
    }
)
"""What the list shows of a block; --where takes every one of them by the value that it shows."""


def _list(options: argparse.Namespace) -> int:
    from pmemx.store import catalogue

    bank, where = open_bank(options), _conditions(options)
    every = options.state or "state" in where
    states = [State(state) for state in options.state or State if every or state != State.EXPIRED]
    with bank.ledger.reading() as now:
        after = bank.full(options.after) if options.after else None
        found = catalogue.listing(now, states=states, where=where, text=options.text, after=after, limit=options.limit)
    if options.json:
        print_json([_row(line) for line in found])
    elif found:
        print_table(tuple(COLUMNS), [[shown(line) for shown in COLUMNS.values()] for line in found])
    else:
        filtered = where or options.text or options.state
        print_line(f"no block of {place(options)} is such" if filtered else f"{place(options)} holds no block")
    return DONE


def _conditions(options: argparse.Namespace) -> dict[str, str]:
    pairs = [condition.partition("=") for condition in options.where]
    if options.namespace:
        pairs.append(("namespace", "=", options.namespace))
    where = {field: value for field, _, value in pairs}
    for field, sign, _ in pairs:
        if not sign:
            raise ConfigError(f"--where {field!r} has no value; write field=value, such as domain=law")
    if len(where) < len(pairs):
        raise ConfigError("one field is asked for two values, which none can have at once; ask twice")
    return where


def _row(line: Any) -> dict[str, Any]:
    from pmemx.store.ledger import readable_time
    from pmemx.store.schema import NEVER

    return line._asdict() | {
        "tags": list(line.tags),
        "other_tags": dict(line.other_tags),
        "expires": None if line.expires >= NEVER else readable_time(line.expires),
        "last_used": readable_time(line.last_used) if line.last_used else None,
    }


def _names(options: argparse.Namespace) -> int:
    names = open_bank(options).names()
    if options.json:
        print_json(list(names))
    else:
        for name in names:
            print_line(name)
    return DONE


def _show(options: argparse.Namespace) -> int:
    from pmemx.cli_bank.card_document import card_document
    from pmemx.core.card_schema import STANDING
    from pmemx.store.conditions import shown_tag

    document = card_document(open_bank(options), options.reference)
    if options.json:
        print_json(document)
        return DONE
    standing = document.pop(STANDING)
    scores, sites, family = (standing.pop(key) for key in ("scores", "sites", "lineage"))
    standing["other_tags"] = [shown_tag(tag, number) for tag, number in standing["other_tags"].items()]
    relatives = {kind: [_called(node) for node in nodes] for kind, nodes in family.items()}
    print_fields({"name": document["name"], **standing, **relatives, "sites": len(sites)})
    print_line("card")
    print_fields({f"  {field}": value for field, value in document.items() if field != "name"})
    if scores:
        print_line("scores")
        columns = ("metric", "value", "low", "high", "n", "groups", "floor", "ceiling")
        print_table(columns, [(metric, *figure.values()) for metric, figure in scores.items()])
    return DONE


def _called(node: Mapping[str, Any]) -> str:
    return f"{node['name']}@{node['number']}" if node["name"] else node["digest"][:12]


def _log(options: argparse.Namespace) -> int:
    narrowed = options.action or options.by or options.before
    return _versions(options) if options.name and not narrowed else _audit(options)


def _versions(options: argparse.Namespace) -> int:
    from pmemx.store.journal import Journal
    from pmemx.store.ledger import readable_time

    bank, name = open_bank(options), options.name
    tags = bank.tags(name)
    entries = Journal(bank).entries(name, action=Action.COMMIT, limit=options.limit)
    rows = [
        {
            "version": entry.detail["number"],
            "when": readable_time(entry.at),
            "who": entry.principal,
            "message": entry.detail["message"],
            "tags": [tag for tag, number in tags.items() if number == entry.detail["number"]],
            "restores": entry.detail["restores"],
            "digest": entry.detail["digest"],
            "entry": entry.seq,
        }
        for entry in entries
    ]
    if options.json:
        print_json(rows)
    else:
        columns = ("version", "when", "who", "message", "tags", "restores", "digest")
        print_table(columns, [[*list(row.values())[:6], str(row["digest"])[:12]] for row in rows])
    return DONE


def _audit(options: argparse.Namespace) -> int:
    from pmemx.store.journal import Journal
    from pmemx.store.ledger import readable_time

    journal = Journal(open_bank(options))
    action = Action(options.action) if options.action else None
    entries = journal.entries(
        options.name, action=action, principal=options.by, before=options.before, limit=options.limit
    )
    if options.json:
        print_json([_entry(entry) for entry in entries])
    elif entries:
        columns = ("entry", "when", "who", "action", "block", "detail")
        print_table(
            columns, [(e.seq, readable_time(e.at), e.principal, e.action, _about(e), _brief(e)) for e in entries]
        )
    else:
        print_line(f"the journal of {place(options)} has no such entry")
    return DONE


def _entry(entry: "Entry") -> dict[str, Any]:
    return {
        "entry": entry.seq,
        "time": entry.time.isoformat(),
        "principal": entry.principal,
        "action": entry.action,
        "namespace": entry.namespace,
        "name": entry.name,
        "detail": dict(entry.detail),
        "hash": entry.hash,
    }


def _about(entry: "Entry") -> str:
    from pmemx.store.catalogue import full_name

    return full_name(entry.namespace, entry.name) if entry.name else ""


def _brief(entry: "Entry") -> str:
    said = {key: value for key, value in entry.detail.items() if key not in _TOLD_APART and value not in (None, "")}
    texts = {key: str(value) for key, value in said.items()}
    return ", ".join(f"{key}={text if len(text) <= 60 else text[:12] + '…'}" for key, text in texts.items())


def _diff(options: argparse.Namespace) -> int:
    bank = open_bank(options)
    before, after = options.before, options.after
    found = _cards_differ(bank, before, after) if options.card else _blocks_differ(bank, before, after)
    found["recorded"] = _recorded_differ(bank, before, after)
    if options.json:
        print_json(found)
    elif bank.find(before).digest == bank.find(after).digest and not found["recorded"]:
        print_line(f"{before} and {after} are equal")
    else:
        _print_diff(found)
    return DONE


def _cards_differ(bank: "Bank", before: str, after: str) -> dict[str, Any]:
    from pmemx.core.card_diff import card_changes, score_changes

    cards = bank.find(before).card, bank.find(after).card
    return {
        "card": {path: change.to_json() for path, change in card_changes(*cards).items()},
        "scores": {name: _with_delta(change) for name, change in score_changes(*cards).items()},
    }


def _blocks_differ(bank: "Bank", before: str, after: str) -> dict[str, Any]:
    from pmemx.core.block_diff import diff
    from pmemx.store.governed import load

    return diff(load(bank, before), load(bank, after)).to_json()


def _recorded_differ(bank: "Bank", before: str, after: str) -> dict[str, Any]:
    """What evaluations recorded in the bank say of the two, where they differ."""
    from pmemx.core.card_diff import Change
    from pmemx.store.evaluations import Evaluations

    one, other = (
        {metric: figure.value for metric, figure in Evaluations(bank).of(text).items()} for text in (before, after)
    )
    changes: dict[str, Any] = {}
    for metric in sorted(one | other):
        if one.get(metric) != other.get(metric):
            kind = "added" if metric not in one else "removed" if metric not in other else "changed"
            changes[metric] = _with_delta(Change(one.get(metric), other.get(metric), kind))
    return changes


def _with_delta(change: "Change") -> dict[str, Any]:
    return change.to_json() | {"delta": change.delta}


def _print_diff(found: Mapping[str, Any]) -> None:
    from math import degrees

    if found["card"]:
        _print_changes("card", found["card"])
    for part in ("scores", "recorded"):
        if found[part]:
            _print_changes(part, found[part])
    if sites := found.get("sites"):
        columns = ("site", "rank", "norm", "distance", "cosine", "largest angle, degrees")
        rows = [
            (
                site["site"], _arrow(*site["ranks"]), _arrow(*(f"{norm:.4g}" for norm in site["norms"])), site["distance"],
                site["cosine"], degrees(max(site["angles"])) if site["angles"] else None,
            )
            for site in sites
        ]  # fmt: skip
        print_table(columns, rows)


def _print_changes(title: str, changes: Mapping[str, Mapping[str, Any]]) -> None:
    rows = [(path, change["kind"], change["before"], change["after"]) for path, change in changes.items()]
    print_table((title, "", "before", "after"), rows)


def _arrow(before: object, after: object) -> str:
    return (
        f"{before}" if before == after else f"{'-' if before is None else before} → {'-' if after is None else after}"
    )


def _lineage(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from pmemx.store.lineage import lineage

    graph = lineage(open_bank(options), options.reference, steps=options.steps)
    nodes = {node.key: asdict(node) for node in graph.nodes}
    if options.json:
        print_json({"nodes": list(nodes.values()), "edges": [asdict(edge) for edge in graph.edges]})
    elif graph.edges:
        rows = [(_called(nodes[e.later]), e.link.value, _called(nodes[e.earlier])) for e in graph.edges]
        print_table(("version", "link", "of"), rows)
    else:
        print_line(
            f"{_called(graph.nodes[0].__dict__)} was made from nothing that is known, and nothing was made from it"
        )
    return DONE


def _trace(options: argparse.Namespace) -> int:
    from pmemx.store.answers import Answers

    traced = Answers(open_bank(options)).trace(options.answer)
    provenance = traced.provenance
    parts = [vars(part) | {"state": part.state.value} for part in traced.parts]
    if options.json:
        about = {"entry": traced.seq, "time": traced.time.isoformat(), "principal": traced.principal}
        print_json({"id": provenance.id, **about, "parts": parts, "provenance": provenance.values()})
        return DONE
    print_fields(
        {
            "answer": provenance.id,
            "when": traced.time.isoformat(timespec="seconds"),
            "who": traced.principal,
            "base": provenance.base,
            "gate": provenance.gate,
            "selection": provenance.selection,
            "no expert": provenance.nothing,
        }
    )
    _print_parts(parts)
    return DONE


def _print_parts(parts: Sequence[Mapping[str, Any]]) -> None:
    rows = [(part["name"], part["number"], part["weight"], part["state"], part["digest"][:12]) for part in parts]
    print_table(("block", "version", "weight", "state", "digest"), rows)
