"""Banks for the page: a small one with everything in it, and one of as many blocks as a test asks for."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from sqlalchemy import insert

from pmemx.core.access import Role
from pmemx.core.card import BlockCard
from pmemx.core.card_json import card_values
from pmemx.core.evidence import Decision, DomainFacts, Evidence, SiteLoad
from pmemx.core.metric import Figure
from pmemx.core.provenance import Provenance, Share
from pmemx.core.record import RunRecord
from pmemx.store import schema
from pmemx.store.answers import Answers
from pmemx.store.bank import Bank
from pmemx.store.evaluations import Evaluations
from pmemx.store.governed import GovernedStore
from pmemx.store.life import Life
from pmemx.store.manifest import Manifest, Site
from pmemx.store.members import Members
from pmemx.store.snapshots import Snapshots
from tests.store.banks import Hands, block, fill, opened, put

__all__ = ["Hands", "block", "fill", "opened", "put"]

NASTY = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(2)'>",
    "=cmd|' /C calc'!A0",
    "law@1",
    "../etc/passwd?a=b&c#d%2e",
    "שלום {{ 7*7 }} 😀",
)
HIDDEN = "\x1b[31mred\x07 \u202egnp.exe\u2066"
"""What a terminal would obey, and what turns a line around; no name may hold it, but a message and a domain may."""


def stocked(folder: Path, clock: Hands) -> GovernedStore:
    """A bank of root's: law with four versions, what was merged from it, an archived, an expired and several nasty blocks."""
    store = opened(folder, clock)
    one = put(store, "law", 1.0, base_name="tiny", licence="MIT", metrics={"exact": 0.25})
    two = put(store, "law", 2.0, base_name="tiny", licence="apache-2.0", metrics={"exact": 0.5}, recipe={"lr": 0.1})
    Evaluations(store.bank).record("law@1", {"loss": Figure(1.5, 1.25, 1.75, 40, 8, 0.5, 2.0)})
    Snapshots(store.bank).take("before three")
    clock.turn(hours=1)
    put(store, "law", 3.0, base_name="tiny", extra={"team": "<b>x</b>"})
    store.rollback("law", 2, message="three was worse")
    store.tag("law@2", "prod", reason="it is good")
    Evaluations(store.bank).record("law@4", {"loss": Figure(1.125, 1.0, 1.25, 40, 8, 0.5, 2.0)}, by="test")
    put(store, "both laws", 5.0, parents=(one.digest, two.digest, "e" * 64))
    put(store, "tax")
    Life(store.bank).archive("tax", reason="nobody asks")
    put(store, "gone")
    Life(store.bank).archive("gone")
    Life(store.bank).expire("gone")
    for name in NASTY:
        store.put(replaced(name, domain=HIDDEN + name), message=HIDDEN + name)
    put(replace(store, namespace="team:legal"), "secret contract")
    shares = (Share("law", store.find("law@4").digest, 0.75), Share("both laws", store.find("both laws").digest, 0.2))
    Answers(store.bank).note(Provenance("b" * 64, "g" * 64, "", shares, "1" * 64, "2" * 64))
    return store


def replaced(name: str, **card: object):
    """A small block with another card."""
    made = block(name, float(len(name)))
    return replace(made, card=replace(made.card, **card))  # type: ignore[arg-type]


def with_members(store: GovernedStore) -> None:
    """root owns everything, eve reads what is shared, tom has no token."""
    members = Members(store.bank)
    members.enrol("root", token="root's own", role=Role.OWNER)
    members = Members(replace(store.bank, token="root's own"))
    members.enrol("eve", token="eve's own", role=Role.READER, scope="shared")
    members.enrol("tom", role=Role.OWNER)


def run_folder(folder: Path) -> Path:
    """A run whose gate sent every domain to its expert, nearly."""
    folder.mkdir()
    experts = ("law", "team:legal/secret contract")
    facts = tuple(
        DomainFacts(name, 0.1, "knowledge", expert) for name, expert in zip(("law", "hush"), experts, strict=True)
    )
    weights = {"law": (0.1, 0.8, 0.1), "hush": (0.0, 0.25, 0.75), "general": (0.9, 0.06, 0.04)}
    decisions = tuple(
        Decision(gate, domain, "test", f"{domain}/{item}", "group", weights[domain])
        for gate in ("oracle", "gate")
        for domain in weights
        for item in range(3)
    )
    loads = tuple(
        SiteLoad("gate", f"model.layers.{n}.q_proj", domain, weights[domain]) for n in (0, 1) for domain in weights
    )
    domains = (*facts, DomainFacts("general", 0.0, "general", None))
    Evidence(domains, experts, (), decisions, loads).write(folder / "evidence.jsonl")
    RunRecord("<i>routing</i>", "2026-01-01T00:00:00+00:00").write(folder)
    return folder


def many(folder: Path, count: int) -> Bank:
    """A sound bank of so many blocks with one version each, written at once: what commits would have written one by one.

    Blocks of one domain share their bytes under different names.
    """
    bank = Bank(folder, principal="root", clock=Hands())
    weights = b"the weights of every block"
    digest = bank.objects.put(weights)
    kinds = []
    for domain in range(min(count, 30)):
        card = BlockCard("one of many", f"domain {domain}", "b" * 64, base_name=f"base-{domain % 3}")
        manifest = Manifest(card, (Site("model.q_proj", 2, 3, 4, 0.5),), digest, len(weights))
        kinds.append((bank.objects.put(manifest.encode()), card_values(card)))
    facts = {
        "number": 1,
        "weights": digest,
        "size": len(weights),
        "rank": 2,
        "sites": 1,
        "restores": None,
        "message": "",
    }
    columns = {column.name for column in schema.versions.columns}
    rows: dict[str, list[dict]] = {"journal": [], "blocks": [], "versions": [], "tags": [], "states": []}
    with bank.transaction() as now:
        at, previous = now.now, now.head[1]
        for seq in range(1, count + 1):
            name, (digest, card) = f"block {seq:05}", kinds[seq % len(kinds)]
            uid = hashlib.sha256(name.encode()).hexdigest()[:32]
            detail = facts | {"digest": digest, "uid": uid, "card": card}
            # Not through Event and canonical_json: checked call by call, they take a minute here.
            values = [seq, at, "root", "commit", "shared", name, detail, previous]
            entry = dict(
                zip(
                    ("seq", "at", "principal", "action", "namespace", "name", "detail", "previous"), values, strict=True
                )
            )
            previous = hashlib.sha256(_canonical(values)).hexdigest()
            rows["journal"].append(entry | {"detail": _canonical(detail).decode(), "hash": previous})
            rows["blocks"].append({"id": seq, "uid": uid, "namespace": "shared", "name": name})
            kept = {key: value for key, value in card.items() if key in columns} | facts
            kept |= {"block": seq, "seq": seq, "digest": digest, "expires": schema.NEVER}
            rows["versions"].append(kept | {"card": _canonical(card).decode()})
            span = {"block": seq, "since": seq, "until": schema.NEVER}
            rows["tags"].append(span | {"tag": "latest", "number": 1})
            rows["states"].append(span | {"state": "generated", "trigger": "commit"})
        for table, found in rows.items():
            now.connection.execute(insert(schema.metadata.tables[table]), found)
    return bank


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
