"""Training a gate over frozen experts: which decisions count, which losses they bear, and who learns from whom."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pmemx.core.bank import ExpertBank
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.encoding import Encoded, collate
from pmemx.core.errors import ConfigError
from pmemx.core.gate import Gate
from pmemx.core.gate_loss import (
    balance_loss,
    entropy_loss,
    importance_loss,
    mutual_information_loss,
    supervision_loss,
    z_loss,
)
from pmemx.gate.linear import LinearGate
from pmemx.gate.phatgoose import PhatgooseGate
from pmemx.gate.sequence import SequenceGate
from pmemx.gate.xlora import XLoraGate
from pmemx.lit.gate_module import GateBatch, GateLosses, GateModule
from pmemx.lit.settings import TrainerSettings
from pmemx.runtime.attach import attached
from pmemx.select.softmax import Softmax

WIDTH, LAYERS, EXPERTS = 16, 2, 8
SUPERVISED = GateLosses(language_model=0.0)


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def bank(llama: LlamaForCausalLM) -> ExpertBank:
    sites = {name: m for name, m in llama.named_modules() if name.endswith(("q_proj", "up_proj"))}
    blocks = []
    for number in range(EXPERTS):
        generator = torch.Generator().manual_seed(number)
        factors = {
            name: LoraFactors(
                torch.randn(2, m.in_features, generator=generator),
                torch.randn(m.out_features, 2, generator=generator),
                scale=0.5,
            )
            for name, m in sites.items()
        }
        blocks.append(CapabilityBlock(BlockCard(name=f"expert-{number}", domain="test", base=""), factors))
    return ExpertBank(blocks)


ROWS = [Encoded((1, 5, 9, 12, 7), 3), Encoded((1, 6, 8), 2), Encoded((1, 4, 3, 11), 2)]


def batch_of(choice: list[int], speaks: list[bool] | None = None, padding: int = 0) -> GateBatch:
    rows = collate(ROWS, 0)
    if padding:
        rows = collate([*ROWS, Encoded((1,) * (5 + padding), 1)], 0)
        rows = type(rows)(rows.ids[:3], rows.attention[:3], rows.prompt[:3])
    return GateBatch(rows, torch.tensor(choice), torch.tensor(speaks or [True] * 3))


def moved(gate: Gate) -> Gate:
    """The gate with random parameters, in training mode without dropout."""
    generator = torch.Generator().manual_seed(3)
    for parameter in gate.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.3
    for module in gate.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return gate.train()


def step(llama, bank, gate: Gate, batch: GateBatch, losses: GateLosses = SUPERVISED) -> dict[str, torch.Tensor]:
    """What one step logs; gradients stay on the gate."""
    logged: dict[str, torch.Tensor] = {}
    with attached(llama, bank, gate=gate, select=Softmax()) as routed:
        module = GateModule(routed, gate, losses, TrainerSettings())
        module.log = lambda name, value, **_: logged.update({name: value})  # type: ignore[method-assign]
        module.log_dict = lambda values, **_: logged.update(values)  # type: ignore[method-assign]
        gate.zero_grad()
        module.training_step(batch, 0).backward()
    return logged


def test_no_loss_at_all_is_refused():
    with pytest.raises(ConfigError, match="weight 0"):
        GateLosses(language_model=0.0, supervision=0.0)
    with pytest.raises(ConfigError, match="weight 0"):
        GateLosses(language_model=0.0, supervision=0.0, balance_k=2)


def test_a_balance_that_counts_no_choice_or_too_many_is_refused(llama, bank):
    with pytest.raises(ConfigError, match="balance_k = 0 counts no choice"):
        GateLosses(balance_k=0)
    with pytest.raises(ConfigError, match="balance_k = 10 is larger than the 9 choices"):
        step(llama, bank, SequenceGate(bank.shape(WIDTH)), batch_of([1, 2, 0]), GateLosses(balance_k=10))


def test_every_loss_with_a_weight_is_there_and_no_other():
    scores, choice = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 3])
    share = scores.softmax(dim=-1)
    expected = {
        "supervision": supervision_loss(scores, choice),
        "balance": balance_loss(share, 2),
        "importance": importance_loss(share),
        "z": z_loss(scores),
        "entropy": entropy_loss(share),
        "mutual_information": mutual_information_loss(share),
    }
    for name, value in expected.items():
        none = dict.fromkeys(["language_model", *expected], 0.0)
        losses = GateLosses(**none | {name: 0.5}, balance_k=2)
        found = losses.of_decisions(scores, choice) | losses.of_place(scores)
        assert found.keys() == {name} and found[name].item() == pytest.approx(value.item())


@pytest.mark.parametrize("level", ["site", "layer", "model"])
@pytest.mark.parametrize("granularity", ["token", "prefix", "prompt"])
def test_padding_changes_no_loss_and_no_gradient(llama, bank, level, granularity):
    gate = moved(LinearGate(bank.shape(WIDTH), granularity=granularity, level=level))
    losses = GateLosses(balance=0.1, importance=0.1, z=0.1, entropy=0.1, mutual_information=0.1)
    tight = step(llama, bank, gate, batch_of([1, 5, 0]), losses)
    gradients = [p.grad.clone() for p in gate.parameters()]
    loose = step(llama, bank, gate, batch_of([1, 5, 0], padding=4), losses)
    assert {name: float(value) for name, value in loose.items()} == pytest.approx(
        {name: float(value) for name, value in tight.items()}, abs=1e-5
    )
    for before, parameter in zip(gradients, gate.parameters(), strict=True):
        assert torch.allclose(parameter.grad, before, atol=1e-5)


@pytest.mark.parametrize(
    ("granularity", "level", "expected"),
    [
        ("token", "site", 12 * 2 * LAYERS),
        ("prefix", "site", 12 * 2 * LAYERS),
        ("prompt", "site", 3 * 2 * LAYERS),
        ("token", "layer", 12 * LAYERS),
        ("prompt", "layer", 3 * LAYERS),
        ("prompt", "model", 3),
    ],
)
def test_a_decision_counts_once_however_many_sites_share_it(llama, bank, monkeypatch, granularity, level, expected):
    counted = []

    def see(losses, scores, choice):
        counted.append((scores.shape, choice.bincount().tolist()))
        return {"z": z_loss(scores)}

    monkeypatch.setattr(GateLosses, "of_decisions", see)
    step(
        llama,
        bank,
        LinearGate(bank.shape(WIDTH), granularity=granularity, level=level),
        batch_of([1, 1, 0]),
        GateLosses(z=1.0),
    )
    [(shape, choices)] = counted
    assert shape == (expected, EXPERTS + 1)
    tokens = [4, 8] if granularity != "prompt" else [1, 2]
    assert choices == [n * expected // sum(tokens) for n in tokens]


@pytest.mark.parametrize("granularity", ["token", "prompt"])
@pytest.mark.parametrize("layerwise", [False, True])
def test_a_context_gate_decides_alike_without_a_pass_of_the_model(llama, bank, granularity, layerwise):
    gate = moved(XLoraGate(bank.shape(WIDTH), granularity=granularity, layerwise=layerwise, layer=0, abstain=0.0))
    short = step(llama, bank, gate, batch_of([1, 5, 0]))
    long = step(llama, bank, gate, batch_of([1, 5, 0]), GateLosses(language_model=1e-9))
    for name in ("train/supervision", "train/accuracy"):
        assert float(short[name]) == pytest.approx(float(long[name]), rel=1e-5)
    assert "train/language_model" in long and "train/language_model" not in short


def test_a_gate_trained_alone_is_not_moved_by_rows_of_others(llama, bank):
    gate = moved(PhatgooseGate(bank.shape(WIDTH)))
    step(llama, bank, gate, batch_of([1, 5, 0]), GateLosses())
    for parameter in gate.parameters():
        assert parameter.grad is not None
        moving = parameter.grad.abs().sum(dim=1) > 0
        assert moving.tolist() == [True, False, False, False, True, False, False, False]
    loss = GateLosses(supervision=0.0)
    step(llama, bank, gate, batch_of([1, 1, 0], speaks=[True, False, False]), loss)
    with_others = [p.grad.clone() for p in gate.parameters()]
    step(llama, bank, gate, batch_of([1, 7, 2], speaks=[True, False, False]), loss)
    for before, parameter in zip(with_others, gate.parameters(), strict=True):
        assert torch.allclose(parameter.grad[0], before[0], atol=1e-7)


def test_supervision_of_a_gate_trained_alone_is_the_papers_sigmoid(llama, bank):
    gate = PhatgooseGate(bank.shape(WIDTH)).train()
    logged = step(llama, bank, gate, batch_of([1, 5, 3]))
    assert float(logged["train/supervision"]) == pytest.approx(torch.tensor(2.0).log().item())


def test_answers_alone_teach_a_gate(llama, bank):
    gate = LinearGate(bank.shape(WIDTH))
    logged = step(llama, bank, gate, batch_of([1, 5, 0]), GateLosses(supervision=0.0))
    assert logged.keys() == {"train/language_model", "train/accuracy", "train/loss"}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gate.parameters())
    silent = step(llama, bank, gate, batch_of([1, 5, 0], speaks=[False] * 3))
    assert "train/language_model" not in silent
