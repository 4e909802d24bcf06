"""Laws of every composition in conf/composition: it composes, builds for any bank, and works in a model as it says."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from pmemx.core.bank import ExpertBank
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.encoding import Encoded
from pmemx.core.gate import GRANULARITIES, DetectorGate, ExampleGate, Gate, SearchedGate, SiteExampleGate
from pmemx.runtime.attach import Routed, attached
from pmemx.select.softmax import Softmax
from pmemx.stage.bank import load_gate, needs_training, save_gate
from pmemx.stage.build import build
from pmemx.stage.composition import Composition
from pmemx.stage.gate_learning import note_examples, show_examples, show_sites

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "conf" / "composition").glob("*.yaml"))
SITES = {
    "model.layers.0.self_attn.q_proj": (16, 16),
    "model.layers.0.mlp.up_proj": (16, 24),
    "model.layers.1.self_attn.q_proj": (16, 16),
    "model.layers.1.mlp.down_proj": (24, 16),
}
WIDTH, VOCAB = 16, 40
PROMPT = torch.arange(8).expand(4, 8) < 5


@cache
def composed() -> dict[str, Any]:
    """All of them beside each other, as a run would compose them."""
    os.environ["PMEMX_ROOT"] = str(ROOT)
    overrides = [f"+composition@composition.{name}={name}" for name in NAMES]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return OmegaConf.to_container(compose("run", overrides).composition, resolve=True)  # type: ignore[return-value]


def made(name: str) -> Composition:
    return build(composed()[name])


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def bank() -> ExpertBank:
    """Eight experts of rank 1 to 4; 2 and 5 skip the last two sites."""
    blocks = []
    for number in range(8):
        generator, rank = torch.Generator().manual_seed(number), 1 + number % 4
        factors = {
            site: LoraFactors(
                torch.randn(rank, width_in, generator=generator) * 0.3,
                torch.randn(width_out, rank, generator=generator) * 0.3,
                scale=1.0,
            )
            for place, (site, (width_in, width_out)) in enumerate(SITES.items())
            if not (place > 1 and number % 3 == 2)
        }
        blocks.append(CapabilityBlock(BlockCard(f"e{number}", "test", ""), factors))
    return ExpertBank(blocks)


def prompts() -> list[tuple[Encoded, int]]:
    """Five of every choice, of four tokens of its own: no expert has the first ones."""
    generator = torch.Generator().manual_seed(0)
    return [
        (Encoded(tuple(torch.randint(3 + 4 * choice, 7 + 4 * choice, (6,), generator=generator).tolist()), 6), choice)
        for choice in range(9)
        for _ in range(5)
    ]


def ready(gate: Gate, routed: Routed) -> None:
    """Examples are shown to a gate that waits for them; weights stay as they are before the first step."""
    settings = {"pad": 0, "batch_size": 16, "advance": lambda steps=1, note="": None}
    if isinstance(gate, ExampleGate):
        show_examples(gate, routed, prompts(), **settings)
    elif isinstance(gate, SiteExampleGate):
        show_sites(gate, routed, prompts(), **settings)
    elif isinstance(gate, DetectorGate):
        note_examples(gate, routed, prompts(), **settings)


def rows() -> Tensor:
    return torch.tensor([[*encoded.ids, 5, 6] for encoded, choice in prompts()[::5] if choice in (0, 1, 3, 8)])


def logits(llama: LlamaForCausalLM, routed: Routed) -> Tensor:
    with routed.given(prompt=PROMPT, domain=torch.tensor([0, 1, 3, 8])):
        return llama(input_ids=rows(), use_cache=False).logits


def test_every_gate_but_the_label_itself_has_a_composition():
    files = (ROOT / "conf" / "composition").glob("*.yaml")
    used = {entry["/gate@gate"] for file in files for entry in OmegaConf.to_container(OmegaConf.load(file))["defaults"]}
    assert used == {path.stem for path in (ROOT / "conf" / "gate").glob("*.yaml")} - {"oracle"}


@pytest.mark.parametrize("name", NAMES)
class TestComposition:
    def test_composes_and_builds_a_gate_for_a_bank_of_eight(self, name, bank):
        composition = made(name)
        gate = composition.gate(bank.shape(WIDTH))
        assert gate.shape == bank.shape(WIDTH) and gate.granularity in GRANULARITIES
        assert composition.mixing in ("after", "before")
        for select in (composition.select, composition.train_select or Softmax()):
            routing = select(torch.zeros(2, 3, 9))
            assert routing.num_experts == 8 and routing.weight.isfinite().all()

    def test_one_pass_in_a_model_is_finite_and_the_same_after_a_file(self, name, llama, bank, tmp_path):
        """With examples shown, and before the first step of training."""
        composition = made(name)
        torch.manual_seed(0)
        gate = composition.gate(bank.shape(WIDTH)).eval()
        how = {"select": composition.select, "mixing": composition.mixing}
        with torch.no_grad(), attached(llama, bank, gate=gate, **how) as routed:
            ready(gate, routed)
            found = logits(llama, routed)
        assert found.shape == (4, 8, VOCAB) and found.isfinite().all()
        if needs_training(gate):
            save_gate(gate, tmp_path, name)
        with (
            torch.no_grad(),
            attached(llama, bank, gate=load_gate(made(name).gate, bank.shape(WIDTH), tmp_path, name), **how) as routed,
        ):
            assert torch.equal(logits(llama, routed), found)

    def test_serves_only_selections_whose_decisions_fall_as_they_would_alone(self, name):
        assert made(name).select.independent

    def test_training_sends_a_gradient_through_its_selection(self, name, llama, bank):
        composition = made(name)
        torch.manual_seed(0)
        gate = composition.gate(bank.shape(WIDTH)).train()
        if isinstance(gate, SearchedGate) or not any(parameter.requires_grad for parameter in gate.parameters()):
            pytest.skip("is not trained by gradients")
        select = composition.train_select or Softmax()
        with attached(llama, bank, gate=gate, select=select, mixing=composition.mixing) as routed:
            loss = F.cross_entropy(logits(llama, routed)[:, 4:-1].flatten(0, 1), rows()[:, 5:].flatten())
        loss.backward()
        moved = [weight.grad for weight in gate.parameters() if weight.grad is not None]
        assert loss.isfinite() and all(gradient.isfinite().all() for gradient in moved)
        assert sum(float(gradient.abs().sum()) for gradient in moved) > 0
