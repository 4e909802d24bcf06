"""The stage of mixtures: blocks in the store, a gate beside them, both found again, and nothing trained twice."""

import json
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from pmemx.base_model.freeze import frozen
from pmemx.base_model.word_tokenizer import word_tokenizer
from pmemx.core.base_model import BaseModel, LoadedBase
from pmemx.core.domain import Corpus, Document, Domain, DomainSource, Example
from pmemx.core.errors import ConfigError, IncompatibleBlock
from pmemx.core.peft_config import rank_and_scale
from pmemx.core.stage import Workspace
from pmemx.gate.linear import LinearGate
from pmemx.gate.router import RouterGate
from pmemx.lit.gate_module import GateLosses
from pmemx.lit.settings import TrainerSettings
from pmemx.runtime.attach import attached
from pmemx.select.softmax import Softmax
from pmemx.select.top_k import TopK
from pmemx.stage import train_together as module
from pmemx.stage.bank import course_digests
from pmemx.stage.corpus import Rows
from pmemx.stage.together import Together, load_together
from pmemx.stage.train_together import TrainTogetherStage
from pmemx.store.governed import GovernedStore
from pmemx.together.hydralora import HydraLora
from pmemx.together.mixlora import MixLora

WIDTH = 8
WORDS = tuple(f"{name}{number}" for name in ("law", "art", "text") for number in range(8))
ANSWERS = GateLosses(supervision=0.0)
ENTRIES = {
    "hydra": Together(
        structure=HydraLora(num_experts=3, rank=2, alpha=4, targets=("up_proj",)),
        gate=partial(RouterGate, init_std=0.1),
        select=Softmax(),
        losses=ANSWERS,
    ),
    "mix": Together(
        structure=MixLora(num_experts=2, rank=2, alpha=4, routed=("up_proj",), plain=("q_proj",)),
        gate=partial(RouterGate, init_std=0.1),
        select=TopK(k=2),
        losses=replace(ANSWERS, balance=0.01, balance_k=2),
        mixing="before",
        trainer=TrainerSettings(steps=1, lr=1e-2, warmup=0),
    ),
}


@dataclass(frozen=True)
class TinyBase(BaseModel):
    """A Llama of random weights."""

    def load(self) -> LoadedBase:
        tokenizer = word_tokenizer(WORDS, ".", context=32)
        sizes = {"hidden_size": WIDTH, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer), max_position_embeddings=32, initializer_range=0.3, pad_token_id=0, **sizes
            )
        )
        return frozen(model, tokenizer, name="tiny", device="cpu")


@dataclass(frozen=True)
class TinyCorpus(DomainSource):
    """Two domains, of which one has documents, and general text."""

    def load(self) -> Corpus:
        def domain(name: str, document: str = "") -> Domain:
            rows = [Example(f"{name}{i}", f"{name}{i}", f"{name}{7 - i}", document) for i in range(8)]
            return Domain(
                name, tuple(rows[:6]), tuple(rows[6:7]), tuple(rows[7:]), documents=(Document(name, document),)
            )

        return Corpus((domain("law", "law1 law2"), domain("art")), domain("text"))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run whose experts were distilled, as far as this stage looks."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "blocks.json").write_text(json.dumps({"experts": {"law": ["d"]}}))
    return tmp_path


def stage(folder: Path, **settings) -> TrainTogetherStage:
    given = {
        "base_model": TinyBase(),
        "data": TinyCorpus(),
        "rows": Rows(),
        "store": GovernedStore(folder / "bank"),
        "together": ENTRIES,
        "trainer": TrainerSettings(steps=3, lr=3e-2, warmup=0, checkpoint_every=2, validate_every=3),
        "checkpoints": str(folder / "checkpoints"),
        "general": 2,
    }
    return TrainTogetherStage(**(given | settings))


def untrained(*args, **kwargs) -> int:
    raise AssertionError("trained")


def said(folder: Path, name: str, run: str = "run") -> Tensor:
    base, store = TinyBase().load(), GovernedStore(folder / "bank")
    bank, gate, select, mixing = load_together(store, folder / run, name, ENTRIES[name], width=WIDTH)
    ids = torch.arange(3, 11).view(2, 4)
    with attached(base.model, bank, gate=gate, select=select, mixing=mixing, base=base.fingerprint), torch.no_grad():
        return base.model(ids, use_cache=False).logits


def versions(folder: Path) -> int:
    return len(GovernedStore(folder / "bank").history("together/mix/0"))


def test_experts_become_blocks_and_the_gate_lies_beside_the_run(folder):
    given = stage(folder)
    workspace = Workspace(folder / "run")
    losses = given.run(workspace)
    made = course_digests(folder / "run", "together")
    assert {name: len(digests) for name, digests in made.items()} == {"hydra": 3, "mix": 2}
    assert course_digests(folder / "run", "experts") == {"law": ["d"]}
    for name, digests in made.items():
        for number, digest in enumerate(digests):
            block = given.store.get(digest)
            assert (
                block.card.name == f"together/{name}/{number}"
                and f"together/{name}/{number}@1" in workspace.ledger.blocks
            )
            assert block.card.domain == "law, art" and block.card.base == TinyBase().load().fingerprint
            assert block.card.metrics["train_loss"] == losses[f"{name}/loss"] > 0
            for site, own in block.factors.items():
                assert rank_and_scale(block.card.peft_config, site) == (own.rank, own.scale) == (2, 2.0)
        assert (folder / "run" / "gates" / "together" / f"{name}.safetensors").exists()
    # Three steps, or the entry's own one, for each of two domains.
    steps = {name: given.store.get(digests[0]).card.recipe["steps"] for name, digests in made.items()}
    assert steps == {"hydra": 6, "mix": 2}
    points = workspace.metrics.read()
    assert {(point.domain, point.step) for point in points} == {("hydra", 5), ("hydra", 6), ("mix", 2)}
    assert "val/loss" in {point.name for point in points}
    assert list((folder / "checkpoints").rglob("*.ckpt")) == []


def test_a_mixture_that_is_trained_already_is_found_in_another_run(folder, monkeypatch):
    stage(folder).run(Workspace(folder / "run"))
    shutil.copytree(folder / "run", folder / "again", ignore=shutil.ignore_patterns("gates"))
    monkeypatch.setattr(module, "fit", untrained)
    losses = stage(folder).run(Workspace(folder / "again"))
    assert losses.keys() == {"hydra/loss", "mix/loss"}
    for name in ENTRIES:
        assert len(GovernedStore(folder / "bank").history(f"together/{name}/0")) == 1
        assert torch.equal(said(folder, name), said(folder, name, run="again"))


def test_other_settings_or_a_lost_gate_are_trained_again(folder):
    only = {"mix": ENTRIES["mix"]}
    stage(folder, together=only).run(Workspace(folder / "run"))
    first = said(folder, "mix")
    others = [{"general": 0}, {"together": {"mix": replace(ENTRIES["mix"], mixing="after")}}]
    for number, change in enumerate(others):
        stage(folder, **({"together": only} | change)).run(Workspace(folder / "run"))
        assert versions(folder) == 2 + number
    stage(folder, together=only).run(Workspace(folder / "run", seed=1))
    assert versions(folder) == 4 and not torch.allclose(said(folder, "mix"), first)
    shutil.rmtree(folder / "checkpoints")
    stage(folder, together=only).run(Workspace(folder / "run"))
    assert torch.equal(said(folder, "mix"), first)


def test_a_trained_mixture_says_something_else_than_the_base(folder):
    stage(folder).run(Workspace(folder / "run"))
    base = TinyBase().load().model
    with torch.no_grad():
        plain = base(torch.arange(3, 11).view(2, 4), use_cache=False).logits
    hydra, mix = (said(folder, name) for name in ENTRIES)
    assert (hydra - plain).abs().max() > 1e-3 and (mix - plain).abs().max() > 1e-3
    assert not torch.allclose(hydra, mix)


def test_what_was_not_trained_here_is_asked_for(folder):
    store = GovernedStore(folder / "bank")
    with pytest.raises(ConfigError, match=r"'hydra' is not trained in this run .* put train_together before evaluate"):
        load_together(store, folder / "run", "hydra", ENTRIES["hydra"], width=WIDTH)
    stage(folder, together={"hydra": ENTRIES["hydra"]}).run(Workspace(folder / "run"))
    with pytest.raises(IncompatibleBlock, match="RouterGate, but here"):
        load_together(store, folder / "run", "hydra", replace(ENTRIES["hydra"], gate=LinearGate), width=WIDTH)
