"""A version's card as one JSON document: the fields of the card, and under "standing" what the bank knows beside them.

pmemx.core.card_schema publishes the schema. Whoever edits the fields and puts the document back commits a new card; what
stands under "standing" is the bank's to know and is passed over.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pmemx.core.card import BlockCard
from pmemx.core.card_json import card_from, card_values
from pmemx.core.card_schema import STANDING
from pmemx.core.errors import ConfigError
from pmemx.store import catalogue, exchanged
from pmemx.store.bank import Bank
from pmemx.store.journal import Journal
from pmemx.store.ledger import readable_time
from pmemx.store.life import Life
from pmemx.store.lineage import Link, lineage
from pmemx.store.references import LATEST
from pmemx.store.schema import NEVER

_OWN = "field_of_card"
"""Where a card's own unknown field "standing" is kept meanwhile."""


def card_document(bank: Bank, reference: str) -> dict[str, Any]:
    """The document of a version. Raises UnknownBlock, AccessDenied, CorruptBlock."""
    with bank.ledger.reading() as now:
        found = catalogue.resolve(now, reference)
        tags = catalogue.pointers(now, found.block)
        scores = catalogue.scores(now, found.block, found.version.number)
        usage = catalogue.usage(now, found.block)
        expires = exchanged.expiries(now, found.block)[found.version.number]
        state, uid = catalogue.state_of(now, found.block), exchanged.uid_of(now, found.block)
        keys = sorted(one.key for one in exchanged.signatures(now, [found.version.digest]))
    version, manifest = found.version, bank.manifest_of(found)
    (entry,) = Journal(bank).entries(str(found.full), before=found.seq + 1, limit=1)
    uses, last, relevance = usage.get(version.number, (0, 0, None))
    # Of the manifest, because the ledger's own copy has lost the order of the PEFT config.
    card = card_values(manifest.card)
    standing: dict[str, Any] = {
        "namespace": version.namespace,
        "version": version.number,
        "latest": tags[LATEST] == version.number,
        "digest": version.digest,
        "uid": uid,
        "state": state.value,
        "tags": sorted(tag for tag, number in tags.items() if number == version.number and tag != LATEST),
        "other_tags": {t: number for t, number in sorted(tags.items()) if number != version.number and t != LATEST},
        "committed": readable_time(entry.at),
        "by": entry.principal,
        "entry": found.seq,
        "message": found.message,
        "restores": version.restores,
        "expires": None if expires >= NEVER else readable_time(expires),
        "uses": uses,
        "last_used": readable_time(last) if last else None,
        "relevance": relevance,
        "uses_of_all_versions": sum(count for count, _, _ in usage.values()),
        "worth": Life(bank).standing(str(found.full)),
        "scores": {metric: asdict(figure) for metric, figure in scores.items()},
        "signatures": keys,
        "lineage": _relatives(bank, bank.reference(version)),
        "rank": manifest.rank,
        "bytes": manifest.size,
        "weights": manifest.weights,
        "sites": [asdict(site) for site in manifest.sites],
    }
    return card | {STANDING: standing | ({_OWN: card[STANDING]} if STANDING in card else {})}


def card_of(document: Mapping[str, Any]) -> BlockCard:
    """The card of a document, edited or not. Raises ConfigError for what is no card."""
    values = {key: value for key, value in document.items() if key != STANDING}
    standing = document.get(STANDING)
    if isinstance(standing, Mapping) and _OWN in standing:
        values[STANDING] = standing[_OWN]
    try:
        return card_from(values)
    except TypeError as error:
        raise ConfigError(
            f"the document is no card ({error}); give one as `pmemx bank show --json` prints it"
        ) from error


def _relatives(bank: Bank, reference: str) -> dict[str, list[dict[str, Any]]]:
    graph = lineage(bank, reference, steps=1)
    nodes, own = {node.key: node for node in graph.nodes}, graph.nodes[0].key
    made = [edge for edge in graph.edges if edge.link is Link.MADE_FROM]
    return {
        "parents": [asdict(nodes[edge.earlier]) for edge in made if edge.later == own],
        "children": [asdict(nodes[edge.later]) for edge in made if edge.earlier == own],
    }
