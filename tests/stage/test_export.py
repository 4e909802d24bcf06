"""The stage of exports: folders for the clients people use, past the gate that sensitivity sets."""

import json
from pathlib import Path

import pytest

from pmemx.core.card import Sensitivity
from pmemx.core.errors import AccessDenied
from pmemx.core.event import Action
from pmemx.core.stage import Workspace
from pmemx.export.peft import PeftExport
from pmemx.stage.export import ExportStage
from pmemx.store.governed import GovernedStore
from pmemx.store.journal import Journal
from tests.exchange.banks import block


def run(tmp_path: Path, **cards: Sensitivity) -> tuple[GovernedStore, dict[str, float]]:
    store = GovernedStore(tmp_path / "bank")
    made = {name: [store.put(block(name, sensitivity=word.value)).digest] for name, word in cards.items()}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "blocks.json").write_text(json.dumps({"experts": made}))
    return store, ExportStage(store=store, exporter=PeftExport()).run(Workspace(tmp_path / "run", 0))


def test_every_expert_becomes_a_folder_and_an_entry_of_the_journal(tmp_path: Path):
    store, values = run(tmp_path, law=Sensitivity.INTERNAL, art=Sensitivity.PUBLIC)
    assert values == {"folders": 2.0}
    index = json.loads((tmp_path / "run" / "export" / "index.json").read_text())
    assert {name: (entry["version"], entry["digest"]) for name, entry in index.items()} == {
        name: (1, store.find(name).digest) for name in ("law", "art")
    }
    entries = Journal(store.bank).entries(action=Action.EXPORT)
    assert {(entry.name, entry.detail["to"]) for entry in entries} == {
        (name, str(tmp_path / "run" / "export")) for name in ("law", "art")
    }


@pytest.mark.parametrize("word", [Sensitivity.CONFIDENTIAL, Sensitivity.SECRET])
def test_an_expert_that_may_not_leave_becomes_no_folder(tmp_path: Path, word: Sensitivity):
    with pytest.raises(AccessDenied, match="leaves the bank"):
        run(tmp_path, law=Sensitivity.INTERNAL, art=word)
    assert not (tmp_path / "run" / "export").exists()
    assert Journal(GovernedStore(tmp_path / "bank").bank).entries(action=Action.EXPORT) == ()
