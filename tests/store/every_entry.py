"""A small bank with eight blocks and every kind of entry in its journal.

python -m tests.store.every_entry writes its SQLite ledger as SQL to tests/store/golden/ledger_<revision>.sql. The file of
a revision that was released is never written again: it is what upgrades are tested on. Write one with each new migration.
"""

import sqlite3
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from pmemx.core.access import Role
from pmemx.core.errors import AccessDenied, PolicyRefused
from pmemx.core.event import Action
from pmemx.core.metric import Figure
from pmemx.core.provenance import Provenance, Share
from pmemx.core.tag_policy import Bound, TagPolicy
from pmemx.store import schema
from pmemx.store.answers import Answers
from pmemx.store.bank import LEDGER_FILE, Bank
from pmemx.store.collector import Collector
from pmemx.store.evaluations import Evaluations
from pmemx.store.governed import GovernedStore
from pmemx.store.life import Keeping, Life
from pmemx.store.members import Members
from pmemx.store.references import Name
from pmemx.store.snapshots import Snapshots
from tests.store.banks import Hands, block

NAMES = ("law", "finance", "medicine", "old", "short", "frozen", "gone", "both")


def fill_bank(bank: Bank) -> Bank:
    """Every verb once or more, by "root" at a clock of its own; the bank as "root" sees it, which is governed then."""
    hands = Hands()
    bank = replace(bank, principal="root", clock=hands)
    store = GovernedStore(bank.path, bank.database, principal="root", clock=hands)
    life, snapshots, evaluations, members = Life(bank), Snapshots(bank), Evaluations(bank), Members(bank)
    for number, name in enumerate(NAMES[:-1], start=1):
        card = {"ttl": 60.0} if name == "short" else {"licence": "CC0-1.0", "extra": {"team": f"t{number % 2}"}}
        store.put(block(name, float(number), **card), message=f"block {number}")
        hands.turn(seconds=1)
    store.put(block("law", 11.0, half_life=100.0, priority=2))
    store.rollback("law", 1, message="back")
    parents = (store.find("law").digest, store.find("finance").digest)
    store.put(block("both", 8.0, parents=parents))
    store.tag("law@2", "trial", reason="to see")
    store.tag("law@2", "stable")
    bank.untag("law", "trial", reason="seen")
    life.archive("gone")
    life.expire("gone")
    Collector(bank).collect(dry_run=False)
    snapshots.take("before")
    snapshots.take("to drop")
    snapshots.drop("to drop")
    life.use("law", count=3, relevance=0.5)
    life.use("law@2")
    life.merge(["finance"], "both")
    life.archive("old", reason="unused")
    life.restore("old")
    life.freeze("frozen")
    hands.turn(days=30)
    life.sweep(Keeping())
    evaluations.record("medicine", {"exact": Figure(0.5, 0.4, 0.6, 20, 4), "lost": Figure(0.01, 0.0, 0.02, 20, 4)})
    evaluations.protect("prod", TagPolicy(bounds=(Bound(metric="exact", at_least=0.3),)))
    store.tag("medicine", "prod")
    with pytest.raises(PolicyRefused):
        store.tag("law", "prod")
    evaluations.protect("trial", TagPolicy())
    evaluations.unprotect("trial")
    shares = (Share("law", store.find("law").digest, 0.75), Share("medicine", store.find("medicine").digest, 0.25))
    Answers(bank).note(Provenance("b" * 64, "gate", "{}", shares, "c" * 64, "d" * 64))
    snapshots.restore("before")
    with bank.transaction() as now:
        law, digest = Name("shared", "law"), store.find("law").digest
        now.append(Action.SIGN, law, {"number": 3, "digest": digest, "key": "e" * 64, "bundle": "a signature"})
        now.append(Action.SUBSCRIBE, law, {"source": "/another/bank", "reference": "law"})
        now.append(Action.SUBSCRIBE, Name("shared", "both"), {"source": "/another/bank", "reference": "both"})
        now.append(Action.UNSUBSCRIBE, law, {})
        now.append(Action.PULL, law, {"source": "/another/bank", "digest": digest})
        now.append(Action.EXPORT, law, {"number": 3, "format": "peft"})
    members.enrol("root", role=Role.OWNER)
    members.enrol("ann", role=Role.READER, scope="shared")
    members.enrol("bob", token="a secret", role=Role.EDITOR, scope="team:legal")
    members.withdraw("ann", Role.READER, "shared")
    members.revoke("bob")
    store.get("law")
    with pytest.raises(AccessDenied):
        replace(bank, principal="eve").names()
    return bank


def main() -> None:
    """Write the golden ledger of today's revision."""
    with tempfile.TemporaryDirectory() as folder:
        fill_bank(Bank(Path(folder)))
        with sqlite3.connect(Path(folder) / LEDGER_FILE) as ledger:
            lines = "\n".join(ledger.iterdump())
    file = Path(__file__).parent / "golden" / f"ledger_{schema.REVISION}.sql"
    file.write_text(lines + "\n", encoding="utf-8")
    print(f"{file}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
