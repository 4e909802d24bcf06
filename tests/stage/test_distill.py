"""What the stage tells its reader about the data that an expert was distilled from."""

import json
from pathlib import Path

import pytest

from pmemx.adapter.lora import Lora
from pmemx.base_model.bundled import BundledBaseModel
from pmemx.core.distill import Distill
from pmemx.core.stage import Workspace
from pmemx.data.tabular import Tabular
from pmemx.distill.context import ContextKL
from pmemx.distill.likelihood import Likelihood
from pmemx.lit.settings import TrainerSettings
from pmemx.stage.corpus import Rows
from pmemx.stage.curriculum import Experts
from pmemx.stage.distill import DistillStage
from pmemx.store.governed import GovernedStore

ANSWERS, DOCUMENTS = Likelihood(rows="answers"), Likelihood(rows="documents")


@pytest.mark.parametrize(
    ("objective", "split_by", "told"),
    [
        (ContextKL(), "group", 1),
        (ContextKL(), "prompt", 0),
        (DOCUMENTS, "group", 1),
        (ANSWERS, "group", 0),
    ],
)
def test_an_expert_of_documents_that_is_tested_on_new_ones_alone_is_told_of(
    tmp_path: Path, objective: Distill, split_by: str, told: int
) -> None:
    rows = [
        {"prompt": f"what is the colour of item {i} ?", "response": "blue", "document": f"sheet {i % 12} is blue ."}
        for i in range(36)
    ]
    (tmp_path / "law.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "general.txt").write_text("the cat sat on the mat . " * 9 + "a dog ran . " * 90, encoding="utf-8")
    workspace = Workspace(tmp_path)
    DistillStage(
        base_model=BundledBaseModel(),
        data=Tabular(
            domains={"law": "law.jsonl"},
            general="general.txt",
            general_characters=100,
            root=str(tmp_path),
            split_by=split_by,  # type: ignore[arg-type]
        ),
        rows=Rows(),
        adapter=Lora(rank=1),
        objective=objective,
        gold_objective=ANSWERS,
        locality=None,
        trainer=TrainerSettings(steps=1, batch_size=2),
        store=GovernedStore(tmp_path / "bank"),
        curricula={"experts": Experts()},
        checkpoints=str(tmp_path / "checkpoints"),
    ).run(workspace)
    assert len(workspace.ledger.notes) == told
    assert all("law: " in note and "set data.split_by=prompt" in note for note in workspace.ledger.notes)
