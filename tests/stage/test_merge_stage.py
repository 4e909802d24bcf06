"""The stage of merges: blocks in the store, their parents, what they lost, and nothing done twice."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pmemx.base_model.freeze import frozen
from pmemx.base_model.word_tokenizer import word_tokenizer
from pmemx.core.bank import ExpertBank
from pmemx.core.base_model import BaseModel, LoadedBase
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.domain import Corpus, Domain, DomainSource, Example
from pmemx.core.encoding import encode
from pmemx.core.errors import ConfigError, DataError
from pmemx.core.merge import Merge, Parent
from pmemx.core.metric import Figure
from pmemx.core.stage import Workspace
from pmemx.merge.dare import Dare
from pmemx.merge.deltas import Deltas
from pmemx.merge.entrywise import EntrywiseMerge
from pmemx.merge.linear import Linear
from pmemx.merge.regmean import RegMean
from pmemx.merge.weighted_sum import WeightedSum
from pmemx.runtime.attach import attached
from pmemx.runtime.moments import second_moments
from pmemx.stage.bank import course_digests
from pmemx.stage.corpus import Rows
from pmemx.stage.merge import MergeStage
from pmemx.stage.summary import methods_table
from pmemx.store.governed import GovernedStore

MERGES: dict[str, Merge] = {
    "cat": Linear(),
    "svd": Linear(rank=1),
    "dare": EntrywiseMerge(combine=WeightedSum(), prune=Dare(density=0.5), space=Deltas()),
}


@dataclass(frozen=True)
class Unread(BaseModel, DomainSource):
    """What a stage must not look at where no merge reads moments."""

    def load(self):
        raise AssertionError("read")


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
    stage = MergeStage(base_model=Unread(), data=Unread(), rows=Rows(), store=store, merges=MERGES, **settings)
    return workspace, stage.run(workspace)


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


SITES = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj")
WORDS = tuple(f"{name}{number}" for name in ("law", "art", "text") for number in range(8))


@dataclass(frozen=True)
class TinyBase(BaseModel):
    """A Llama of random weights."""

    def load(self) -> LoadedBase:
        tokenizer = word_tokenizer(WORDS, ".", context=32)
        sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=32, pad_token_id=0, **sizes)
        )
        return frozen(model, tokenizer, name="tiny", device="cpu")


@dataclass(frozen=True)
class TinyCorpus(DomainSource):
    """Twelve rows of each domain; changed: in their last response."""

    changed: bool = False

    def load(self) -> Corpus:
        def domain(name: str) -> Domain:
            rows = [
                Example(f"{name}{i}", f"{name}{i % 8} {name}{i // 8}", f"{name}{5 * i % 8}", document="never read")
                for i in range(12)
            ]
            if self.changed:
                rows[-1] = replace(rows[-1], response=f"{name}0")
            return Domain(name, tuple(rows), (), tuple(rows[:1]))

        return Corpus((domain("law"), domain("art")), domain("text"))


READERS: dict[str, Merge] = {"cat": Linear(), "regmean": RegMean(), "diagonal": RegMean(off_diagonal=0.0)}


def unseen(steps: int = 1, note: str = "") -> None: ...


class TestMomentsOfData:
    @pytest.fixture(scope="class")
    def base(self) -> LoadedBase:
        return TinyBase().load()

    @pytest.fixture
    def store(self, tmp_path, base) -> GovernedStore:
        """The second expert leaves one site alone."""
        store, made = GovernedStore(tmp_path / "bank"), {}
        (tmp_path / "run").mkdir()
        for number, (name, sites) in enumerate((("law", SITES), ("art", SITES[:1]))):
            generator = torch.Generator().manual_seed(number)
            factors = {
                site: LoraFactors(torch.randn(2, 8, generator=generator), torch.randn(12, 2, generator=generator), 1.0)
                for site in sites
            }
            card = BlockCard(name, name, base.fingerprint)
            made[name] = [store.put(CapabilityBlock(card, factors)).digest]
        (tmp_path / "run" / "blocks.json").write_text(json.dumps({"experts": made}))
        return store

    def run(self, tmp_path: Path, store: GovernedStore, *, seed: int = 0, **settings) -> None:
        given = {"base_model": TinyBase(), "data": TinyCorpus(), "rows": Rows(), "merges": READERS} | settings
        MergeStage(store=store, **given).run(Workspace(tmp_path / "run", seed))

    def versions(self, store: GovernedStore) -> list[int]:
        return [len(store.history(f"merge/{name}")) for name in READERS]

    def test_are_taken_of_every_expert_alone_on_its_own_rows(self, tmp_path, store, base):
        self.run(tmp_path, store, weights={"art": 0.5})
        parents = []
        for name, weight in (("law", 1.0), ("art", 0.5)):
            block = store.get(name)
            rows = [encode(base.tokenizer, e, with_document=False) for e in TinyCorpus().load().domain(name).train]
            with attached(base.model, ExpertBank([block]), weights=[1.0]):
                moments = second_moments(
                    base.model, SITES, rows, pad=base.tokenizer.pad_token_id, batch_size=5, advance=unseen
                )
            parents.append(Parent(block, weight, store.find(name).digest, moments))
        expected = RegMean()(parents, name="m", generator=torch.Generator()).block
        for site in SITES:
            found = store.get("merge/regmean").factors[site].delta()
            assert (found - expected.factors[site].delta()).abs().max() < 1e-4
            assert (found - store.get("merge/cat").factors[site].delta()).abs().max() > 0.1

    def test_are_what_a_merge_that_reads_them_is_known_by(self, tmp_path, store):
        for _ in range(2):
            self.run(tmp_path, store)
        assert self.versions(store) == [1, 1, 1]
        assert store.find("merge/regmean").digest != store.find("merge/diagonal").digest
        # More rows than there are change nothing.
        self.run(tmp_path, store, moment_rows=99)
        assert self.versions(store) == [1, 1, 1]
        self.run(tmp_path, store, moment_rows=5)
        self.run(tmp_path, store, data=TinyCorpus(changed=True))
        assert self.versions(store) == [1, 3, 3]
        self.run(tmp_path, store, seed=1, moment_rows=5)
        assert self.versions(store) == [2, 4, 4]

    def test_are_not_taken_again_for_what_is_merged_already(self, tmp_path, store, monkeypatch):
        self.run(tmp_path, store)

        def taken(*_, **__):
            raise AssertionError("taken again")

        monkeypatch.setattr("pmemx.stage.merge.second_moments", taken)
        self.run(tmp_path, store)
        with pytest.raises(AssertionError, match="taken again"):
            self.run(tmp_path, store, moment_rows=5)

    def test_are_of_as_many_rows_as_asked_for(self, tmp_path, store, monkeypatch):
        seen: list[int] = []

        def counted(model, sites, rows, **settings):
            seen.append(len({row.ids for row in rows}))
            return second_moments(model, sites, rows, **settings)

        monkeypatch.setattr("pmemx.stage.merge.second_moments", counted)
        self.run(tmp_path, store, moment_rows=5)
        assert seen == [5, 5]

    def test_need_a_domain_for_every_expert(self, tmp_path, store):
        with pytest.raises(DataError, match="no domain 'art'"):
            self.run(tmp_path, store, rows=Rows(domains=1))

    @pytest.mark.parametrize("setting", ["moment_rows", "batch_size"])
    def test_of_no_rows_are_refused(self, tmp_path, store, setting):
        with pytest.raises(ConfigError, match=f"{setting} = 0 reads nothing"):
            self.run(tmp_path, store, **{setting: 0})
