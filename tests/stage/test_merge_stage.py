"""The stage of merges: blocks in the store, their parents, what they lost, and nothing done twice."""

import json

import pytest
import torch

from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.core.merge import Merge
from pmemx.core.metric import Figure
from pmemx.core.stage import Workspace
from pmemx.merge.dare import Dare
from pmemx.merge.deltas import Deltas
from pmemx.merge.entrywise import EntrywiseMerge
from pmemx.merge.linear import Linear
from pmemx.merge.weighted_sum import WeightedSum
from pmemx.stage.bank import course_digests
from pmemx.stage.merge import MergeStage
from pmemx.stage.summary import methods_table
from pmemx.store.governed import GovernedStore

MERGES: dict[str, Merge] = {
    "cat": Linear(),
    "svd": Linear(rank=1),
    "dare": EntrywiseMerge(combine=WeightedSum(), prune=Dare(density=0.5), space=Deltas()),
}


@pytest.fixture
def store(tmp_path) -> GovernedStore:
    """Two experts, as the distillation leaves them: versions in the store, digests in blocks.json."""
    store, made = GovernedStore(tmp_path / "bank"), {}
    (tmp_path / "run").mkdir()
    for number, name in enumerate(("law", "art")):
        generator = torch.Generator().manual_seed(number)
        factors = {
            "a": LoraFactors(torch.randn(2, 6, generator=generator), torch.randn(5, 2, generator=generator), 1.0)
        }
        made[name] = [store.put(CapabilityBlock(BlockCard(name, name, "base"), factors)).digest]
    (tmp_path / "run" / "blocks.json").write_text(json.dumps({"experts": made}))
    return store


def run(tmp_path, store: GovernedStore, *, seed: int = 0, **settings) -> tuple[Workspace, dict[str, float]]:
    workspace = Workspace(tmp_path / "run", seed)
    return workspace, MergeStage(store=store, merges=MERGES, **settings).run(workspace)


def test_every_merge_becomes_a_block_that_knows_its_parents_and_its_loss(tmp_path, store):
    workspace, values = run(tmp_path, store)
    experts = course_digests(workspace.folder, "experts")
    for name, (digest,) in course_digests(workspace.folder, "merge").items():
        version = store.find(digest)
        assert version.name == f"merge/{name}" and f"merge/{name}@1" in workspace.ledger.blocks
        assert version.card.parents == (experts["art"][0], experts["law"][0])
        lost = version.card.metrics["lost_energy"]
        assert lost == values[f"{name}/lost_energy"] == workspace.ledger.figures[f"lost_energy/merge/{name}"].value
    assert set(experts) == {"law", "art"}
    assert values["cat/lost_energy"] == 0.0 and 0.1 < values["svd/lost_energy"] < 0.9


def test_weights_are_by_expert_and_1_where_none_is_given(tmp_path, store):
    run(tmp_path, store, weights={"art": 0.5})
    sum_of = store.get("law").factors["a"].delta() + 0.5 * store.get("art").factors["a"].delta()
    assert torch.allclose(store.get("merge/cat").factors["a"].delta(), sum_of, atol=1e-6)
    assert store.find("merge/cat").card.recipe["weights"] == [0.5, 1.0]


def test_what_is_merged_already_is_found_and_other_settings_make_another_version(tmp_path, store):
    for _ in range(2):
        run(tmp_path, store)
    assert [len(store.history(f"merge/{name}")) for name in MERGES] == [1, 1, 1]
    run(tmp_path, store, seed=1)
    run(tmp_path, store, weights={"law": 2.0})
    assert [len(store.history(f"merge/{name}")) for name in MERGES] == [3, 3, 3]
    assert not torch.equal(store.get("merge/dare@1").factors["a"].A, store.get("merge/dare@2").factors["a"].A)


def test_a_weight_for_an_expert_that_is_not_there_is_refused(tmp_path, store):
    with pytest.raises(ConfigError, match="weights name 'lwa', which no expert is called; did you mean 'law'"):
        run(tmp_path, store, weights={"lwa": 1.0})


def test_the_summary_shows_merges_as_rows_and_single_experts_not():
    names = ("loss/base", "loss/merge/ties", "loss/expert/law", "lost_energy/merge/ties")
    table = methods_table(dict.fromkeys(names, Figure(0.5)), {"loss": "loss/{method}", "lost": "lost_energy/{method}"})
    columns = [list(column.cells) for column in table.columns]
    assert columns == [["base", "merge/ties"], ["0.500", "0.500"], ["", "0.500"]]
