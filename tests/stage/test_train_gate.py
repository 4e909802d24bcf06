"""Gates that learn from examples see whole prompts once; a gate's file fits one gate over one bank."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from pmemx.base_model.bundled import BundledBaseModel
from pmemx.core.bank import BankShape, ExpertBank
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.domain import Corpus, Domain, Example
from pmemx.core.encoding import Encoded
from pmemx.core.errors import ConfigError, IncompatibleBlock
from pmemx.core.stage import Workspace
from pmemx.data.procedural import ProceduralWorld
from pmemx.gate.arrow import ArrowGate
from pmemx.gate.linear import LinearGate
from pmemx.gate.oracle import OracleGate
from pmemx.gate.phatgoose import PhatgooseGate
from pmemx.gate.retrieval import RetrievalGate
from pmemx.gate.sequence import SequenceGate
from pmemx.gate.task import TaskGate
from pmemx.gate.uniform import UniformGate
from pmemx.gate.xlora import XLoraGate
from pmemx.lit.gate_module import GateLosses, Source
from pmemx.lit.settings import TrainerSettings
from pmemx.runtime.attach import attached
from pmemx.select.softmax import Softmax
from pmemx.select.top_k import TopK
from pmemx.stage.bank import Learnt, gate_learnt, load_gate, needs_training, save_gate
from pmemx.stage.composition import all_compositions
from pmemx.stage.corpus import Rows
from pmemx.stage.gate_learning import prompts_of, show_examples
from pmemx.stage.train_gate import TrainGateStage
from pmemx.store.governed import GovernedStore

SHAPE = BankShape(("law", "botany"), {"model.layers.0.mlp.up_proj": 8, "model.layers.0.mlp.down_proj": 12}, 8)


def test_gates_with_weights_or_without_examples_need_training():
    trained = [LinearGate, PhatgooseGate, RetrievalGate, SequenceGate, TaskGate, XLoraGate]
    assert all(needs_training(gate(SHAPE)) for gate in trained)
    assert not any(needs_training(gate(SHAPE)) for gate in (ArrowGate, OracleGate, UniformGate))


class TestFile:
    def test_gives_the_gate_back(self, tmp_path: Path):
        gate = LinearGate(SHAPE)
        for weight in gate.parameters():
            weight.data.normal_()
        save_gate(gate, tmp_path, "gate")
        loaded = load_gate(LinearGate, SHAPE, tmp_path, "gate")
        assert all(torch.equal(a, b) for a, b in zip(gate.parameters(), loaded.parameters(), strict=True))
        assert not loaded.training

    def test_gives_back_what_was_learnt_from_examples(self, tmp_path: Path):
        gate = RetrievalGate(SHAPE)
        gate.see(torch.randn(6, 1, 8), torch.tensor([0, 1, 2, 0, 1, 2]))
        save_gate(gate, tmp_path, "gate")
        pooled = torch.randn(3, 1, 8)
        assert torch.equal(
            load_gate(RetrievalGate, SHAPE, tmp_path, "gate").score(pooled, None), gate.score(pooled, None)
        )

    def test_fits_the_versions_it_was_learnt_over(self, tmp_path: Path):
        learnt = Learnt("work", 1.0, 2.0, 3, ("a", "b"))
        save_gate(LinearGate(SHAPE), tmp_path, "gate", learnt)
        assert gate_learnt(tmp_path, "gate") == learnt
        for versions in (["a", "b"], []):
            load_gate(LinearGate, SHAPE, tmp_path, "gate", versions=versions)
        with pytest.raises(
            IncompatibleBlock, match=r"gate 'gate' was trained over other versions of botany; put train_"
        ):
            load_gate(LinearGate, SHAPE, tmp_path, "gate", versions=["a", "c"])
        # Another gate of that name, which needs no file.
        assert isinstance(load_gate(ArrowGate, SHAPE, tmp_path, "gate", versions=["a", "c"]), ArrowGate)

    def test_of_a_version_that_noted_no_experts_serves_any(self, tmp_path: Path):
        save_gate(LinearGate(SHAPE), tmp_path, "gate", Learnt("work", 1.0, 2.0, 3, ()))
        path = tmp_path / "gate.json"
        card = json.loads(path.read_text())
        del card["learnt"]["experts"]
        path.write_text(json.dumps(card))
        assert gate_learnt(tmp_path, "gate") == Learnt("work", 1.0, 2.0, 3, ())
        load_gate(LinearGate, SHAPE, tmp_path, "gate", versions=["a", "c"])

    def test_is_not_wanted_of_a_gate_that_needs_no_training(self, tmp_path: Path):
        assert isinstance(load_gate(ArrowGate, SHAPE, tmp_path, "gate"), ArrowGate)

    @pytest.mark.parametrize("factory", [LinearGate, RetrievalGate])
    def test_is_missed_of_one_that_does(self, tmp_path: Path, factory):
        with pytest.raises(
            ConfigError, match=r"gate 'gate' is not trained in this run .* put train_gate before evaluate"
        ):
            load_gate(factory, SHAPE, tmp_path, "gate")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"experts": ("law", "sums")}, r"for experts \['botany'\], but here that is \['sums'\]; train it again"),
            ({"experts": ("botany", "law")}, r"for experts \['law', 'botany'\], in that order, 2 in all, but here"),
            (
                {"sites": {"model.layers.0.mlp.up_proj": 8}},
                r"for sites \[\['model.layers.0.mlp.down_proj', 12\]\], but",
            ),
            (
                {"sites": {"model.layers.0.mlp.up_proj": 8, "model.layers.0.mlp.down_proj": 16}},
                r"for sites \[\['model.layers.0.mlp.down_proj', 12\]\], but here that is .*, 16\]\]; train",
            ),
            ({"sites": dict(reversed(SHAPE.sites.items()))}, r"in that order, 2 in all, but here"),
            ({"width": 16}, "for width 8, but here that is 16; train it again"),
        ],
    )
    def test_of_another_bank_is_refused(self, tmp_path: Path, change, message):
        save_gate(LinearGate(SHAPE), tmp_path, "gate")
        with pytest.raises(IncompatibleBlock, match=message):
            load_gate(LinearGate, replace(SHAPE, **change), tmp_path, "gate")

    def test_of_another_gate_or_of_other_settings_is_refused(self, tmp_path: Path):
        save_gate(SequenceGate(SHAPE, filters=4), tmp_path, "gate")
        with pytest.raises(IncompatibleBlock, match=r"trained for class pmemx\.gate\.sequence\.SequenceGate, but here"):
            load_gate(LinearGate, SHAPE, tmp_path, "gate")
        with pytest.raises(IncompatibleBlock, match=r"choice\.weight is \[3, 4\] in the file and \[3, 5\] here"):
            load_gate(partial(SequenceGate, filters=5), SHAPE, tmp_path, "gate")
        with pytest.raises(IncompatibleBlock, match="for layer 0, but here that is -1"):
            load_gate(partial(SequenceGate, filters=4, layer=-1), SHAPE, tmp_path, "gate")

    def test_says_what_it_is_for_in_plain_json(self, tmp_path: Path):
        save_gate(LinearGate(SHAPE), tmp_path, "gate")
        card = json.loads((tmp_path / "gate.json").read_text(encoding="utf-8"))
        assert card["granularity"] == "prompt" and card["level"] == "site"
        assert card["experts"] == ["law", "botany"] and card["sites"][0] == ["model.layers.0.mlp.up_proj", 8]
        assert sorted(load_file(tmp_path / "gate.safetensors")) == sorted(LinearGate(SHAPE).state_dict())

    def test_serves_at_another_granularity_or_level(self, tmp_path: Path):
        save_gate(LinearGate(SHAPE), tmp_path, "gate")
        served = load_gate(partial(LinearGate, granularity="token", level="model"), SHAPE, tmp_path, "gate")
        assert isinstance(served, LinearGate) and (served.granularity, served.level) == ("token", "model")


def test_the_checkpoints_of_a_gate_are_named_after_all_that_its_training_comes_from(tmp_path: Path):
    (tmp_path / "blocks.json").write_text('{"experts": {"law": ["d1"]}}', encoding="utf-8")
    text = (Example("1", "", "a"),)
    corpus = Corpus((), Domain("general", text, (), text))
    stage = TrainGateStage(
        base_model=BundledBaseModel(),
        data=ProceduralWorld(),
        rows=Rows(),
        store=GovernedStore(tmp_path / "bank"),
        gates={},
        select=Softmax(),
        losses=GateLosses(),
        trainer=TrainerSettings(),
    )
    workspace = Workspace(tmp_path)
    others = [
        {"select": Softmax(temperature=2.0)},
        {"mixing": "before"},
        {"per_domain": 3},
        {"general": 4},
        {"unknown": 4},
        {"losses": GateLosses(z=0.1)},
        {"trainer": TrainerSettings(steps=7)},
    ]
    gate = LinearGate(SHAPE)

    def work(stage: TrainGateStage, workspace: Workspace) -> str:
        (composition,) = all_compositions({"gate": LinearGate}, {}, select=stage.select, mixing=stage.mixing).values()
        return stage.work(workspace, corpus, composition, gate)

    names = [work(replace(stage, **change), workspace) for change in ({}, *others)]
    names.append(work(stage, replace(workspace, seed=1)))
    assert len(set(names)) == len(names)
    # How often it is saved does not change what comes out.
    assert work(replace(stage, trainer=TrainerSettings(checkpoint_every=7)), workspace) == names[0]


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


class TestExamples:
    bank = ExpertBank(
        [
            CapabilityBlock(
                BlockCard(name=name, domain=name, base=""),
                {"model.layers.0.mlp.up_proj": LoraFactors(torch.ones(1, 8), torch.ones(12, 1), 1.0)},
            )
            for name in SHAPE.experts
        ]
    )
    # Every choice has tokens of its own; 30 is the answer, and no part of the prompt.
    prompts = (
        (Encoded((3, 4), 2), 1),
        (Encoded((10, 11, 12), 3), 2),
        (Encoded((4, 4, 3), 3), 1),
        (Encoded((20, 21), 2), 0),
    )

    def test_are_the_prompts_of_rows_that_can_be_answered(self):
        law = Source((Encoded((3, 4, 30), 2), Encoded((4, 4, 3, 30, 30), 3)), 1, per_batch=4)
        text = Source((Encoded((20, 21, 30), 2), Encoded((30, 30), 0)), 0, per_batch=4)
        unknown = Source((Encoded((3, 5, 30), 2),), 0, per_batch=4, speaks=False, resembles=True)
        left_out = Source((Encoded((10, 11, 12, 30), 3),), 2, per_batch=0)
        assert prompts_of([law, text, unknown, left_out]) == [self.prompts[0], self.prompts[2], self.prompts[3]]

    def test_negatives_are_shown_to_every_gate_and_what_resembles_an_expert_to_those_that_ask_for_it(self):
        negatives = Source((Encoded((25, 26, 30), 2),), 0, per_batch=4, speaks=False)
        unknown = Source((Encoded((3, 5, 30), 2),), 0, per_batch=4, speaks=False, resembles=True)
        shown = [(Encoded((25, 26), 2), 0), (Encoded((3, 5), 2), 0)]
        assert prompts_of([negatives, unknown]) == shown[:1]
        assert prompts_of([negatives, unknown], unanswerable=True) == shown

    @pytest.mark.parametrize("batch_size", [1, 3, 8])
    @pytest.mark.parametrize("granularity", ["token", "prompt"])
    def test_are_shown_whole_in_any_batches(self, llama, batch_size, granularity):
        gate = RetrievalGate(self.bank.shape(8), granularity=granularity)
        told: list[int] = []

        def advance(steps: int = 1, note: str = "") -> None:
            told.append(steps)

        with attached(llama, self.bank, gate=gate, select=TopK()) as routed:
            right = show_examples(gate, routed, self.prompts, pad=0, batch_size=batch_size, advance=advance)
        assert right == 1.0 and sum(told) == 4 and gate.granularity == granularity
        said = [
            gate.read(llama.get_input_embeddings()(torch.tensor([ids])))[0].mean(dim=0) for ids in ((3, 4), (4, 4, 3))
        ]
        assert torch.allclose(gate.get_buffer("total")[1].float(), said[0] + said[1], atol=1e-6)
        assert gate.get_buffer("count").tolist() == [1, 2, 1]
