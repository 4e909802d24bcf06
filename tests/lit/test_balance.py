"""Balance keeps a top-1 router from collapsing, and training tells gates what their losses and biases ask for."""

import copy
import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pmemx.core.bank import BankShape, ExpertBank
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.encoding import Encoded, collate
from pmemx.core.errors import ConfigError
from pmemx.core.gate import Gate
from pmemx.core.gate_loss import balance_loss, mole_balance_loss
from pmemx.core.routing import Select
from pmemx.core.shares import shares
from pmemx.gate.linear import LinearGate
from pmemx.gate.router import RouterGate
from pmemx.gate.sequence import SequenceGate
from pmemx.gate.xlora import XLoraGate
from pmemx.lit.fit import fit
from pmemx.lit.gate_module import GateBatch, GateLosses, GateModule, MixtureStream, Source
from pmemx.lit.settings import TrainerSettings
from pmemx.lit.stream import StreamModule
from pmemx.runtime.attach import attached
from pmemx.select.softmax import Softmax
from pmemx.select.top_k import TopK

SITE = "layers.0.up_proj"
WIDTH, EXPERTS = 16, 8
NONE = {"language_model": 0.0, "supervision": 0.0}


def utilisation(*, balance: float = 0.0, rate: float = 0.0) -> float:
    """Entropy of who is chosen, as a share of log E, after a router and eight experts have learnt one map together.

    Any expert could learn it; tokens have a common part, so that whoever is chosen at first is chosen by most and learns most.
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    gate = RouterGate(
        BankShape(tuple(f"e{i}" for i in range(EXPERTS)), {SITE: WIDTH}, WIDTH), init_std=0.02, balance_rate=rate
    )
    experts = torch.nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH, generator=generator) * 0.02)
    target = torch.randn(WIDTH, WIDTH, generator=generator) / 4
    common = 0.3 * torch.randn(WIDTH, generator=generator)
    optimizer = torch.optim.Adam([*gate.parameters(), experts], lr=0.03)
    select, load = TopK(k=1, renormalise=False), torch.zeros(EXPERTS, dtype=torch.long)
    for step in range(70):
        x = torch.randn(1, 96, WIDTH, generator=generator) + common
        scores, bias = gate(SITE, x), gate.load_bias(SITE)
        routing = select(scores) if bias is None else select.biased(scores, bias)
        said = torch.einsum("te,ti,eio->to", routing.dense()[0], x[0], experts)
        loss = (said - x[0] @ target).square().mean() + balance * balance_loss(shares(scores)[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        taken = routing.index.flatten().bincount(minlength=EXPERTS)
        gate.rebalance(SITE, taken)
        load += taken if step >= 50 else 0
    return float(torch.special.entr(load / load.sum()).sum() / math.log(EXPERTS))


def test_a_router_collapses_unless_a_loss_or_a_bias_balances_it():
    """Left alone it ends on about three of eight experts; Switch's loss and DeepSeek's bias keep all in use."""
    assert utilisation() < 0.65
    assert utilisation(balance=0.1) > 0.9
    assert utilisation(rate=0.1) > 0.9


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def bank(llama: LlamaForCausalLM) -> ExpertBank:
    """Mixed ranks; experts 2 and 5 skip the query projections."""
    blocks = []
    for number in range(EXPERTS):
        generator, rank = torch.Generator().manual_seed(number), 1 + number % 4
        factors = {
            name: LoraFactors(
                torch.randn(rank, m.in_features, generator=generator),
                torch.randn(m.out_features, rank, generator=generator),
                scale=0.5,
            )
            for name, m in llama.named_modules()
            if name.endswith(("up_proj",) if number % 3 == 2 else ("q_proj", "up_proj"))
        }
        blocks.append(CapabilityBlock(BlockCard(name=f"expert-{number}", domain="test", base=""), factors))
    return ExpertBank(blocks)


ROWS = [Encoded((1, 5, 9, 12, 7), 3), Encoded((1, 6, 8), 2), Encoded((1, 4, 3, 11), 2)]


def batch_of(choice: list[int], rows: list[Encoded] = ROWS) -> GateBatch:
    return GateBatch(collate(rows, 0), torch.tensor(choice), torch.ones(len(rows), dtype=torch.bool))


def moved(gate: Gate) -> Gate:
    """The gate with random parameters, in training mode without dropout."""
    generator = torch.Generator().manual_seed(3)
    for parameter in gate.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.3
    for module in gate.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return gate.train()


def step(llama, bank, gate: Gate, batch: GateBatch, losses: GateLosses, select: Select | None = None):
    """What one step logs, with the scores of every site in their order; gradients stay on the gate."""
    logged: dict[str, torch.Tensor] = {}
    seen: list[torch.Tensor] = []
    with attached(llama, bank, gate=gate, select=select or Softmax()) as routed:
        module = GateModule(routed, gate, losses, TrainerSettings())
        module.log = lambda name, value, **_: logged.update({name: value})  # type: ignore[method-assign]
        module.log_dict = lambda values, **_: logged.update(values)  # type: ignore[method-assign]
        gate.zero_grad()
        with routed.observed(lambda observation: seen.append(observation.scores.detach())):
            module.training_step(batch, 0).backward()
    return logged, seen


def gradients(gate: Gate) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in gate.parameters() if parameter.grad is not None]


def test_mole_balance_is_taken_over_the_decisions_of_a_batch(llama, bank):
    gate = moved(LinearGate(bank.shape(WIDTH)))
    logged, seen = step(llama, bank, gate, batch_of([1, 5, 0]), GateLosses(**NONE, mole_balance=0.5))
    expected = mole_balance_loss(torch.cat([scores[:, 0] for scores in seen]).softmax(dim=-1))
    assert float(logged["train/mole_balance"]) == pytest.approx(expected.item(), rel=1e-6)
    assert float(logged["train/loss"]) == pytest.approx(0.5 * expected.item(), rel=1e-6)


def test_balance_is_taken_at_every_site_so_that_sites_collapsed_apart_are_not_balanced(llama, bank):
    gate = LinearGate(bank.shape(WIDTH))
    for number, head in enumerate(gate.parameters()):
        head.data.zero_()
        if head.dim() == 1:
            head.data[1 + number % EXPERTS] = 20.0  # every site sure of an expert of its own
    logged, seen = step(llama, bank, gate, batch_of([1, 5, 0]), GateLosses(**NONE, balance=1.0))
    chosen = {int(scores[:, 0].argmax(dim=-1)[0]) for scores in seen}
    assert len(chosen) == len(seen) > 1
    assert float(logged["train/balance"]) == pytest.approx(EXPERTS + 1, rel=1e-4)


@pytest.mark.parametrize("granularity", ["token", "prompt"])
@pytest.mark.parametrize(("kind", "settings"), [(LinearGate, {}), (XLoraGate, {"layerwise": True, "layer": 0})])
def test_localised_balance_is_the_mean_over_sites_of_what_rows_give_each_expert(
    llama, bank, kind, settings, granularity
):
    gate = moved(kind(bank.shape(WIDTH), granularity=granularity, **settings))
    losses = GateLosses(**NONE, localised_balance=1.0, localised_delta=0.3)
    logged, seen = step(llama, bank, gate, batch_of([1, 5, 0]), losses)
    if kind is XLoraGate:
        with attached(llama, bank, gate=gate, select=Softmax()) as routed, torch.no_grad():
            rows = batch_of([1, 5, 0]).rows
            with routed.given(prompt=rows.prompt):
                seen = list(routed.decide(rows.ids, rows.attention.long()).unbind(dim=2))
    assert len(seen) == 4
    found = []
    for scores in seen:
        weighed = torch.zeros(3, EXPERTS)
        for row, (encoded, own) in enumerate(zip(ROWS, (1, 5, 0), strict=True)):
            for token in range(len(encoded.ids) if granularity == "token" else 1):
                weighed[row] += scores[row, token].softmax(dim=-1)[1:]
            for expert in range(EXPERTS):
                weighed[row, expert] *= 1.3 if own == expert + 1 else 0.7
        found.append(float(weighed.var(correction=0) / weighed.mean() ** 2))
    assert float(logged["train/localised_balance"]) == pytest.approx(sum(found) / 4, rel=1e-4)
    assert all(gradient.isfinite().all() for gradient in gradients(gate)) and gradients(gate)


def test_prediction_entropy_is_that_of_the_routed_model_along_the_prompts(llama, bank):
    gate = moved(LinearGate(bank.shape(WIDTH)))
    logged, _ = step(llama, bank, gate, batch_of([1, 5, 0]), GateLosses(**NONE, prediction_entropy=1.0))
    found = []
    with torch.no_grad(), attached(llama, bank, gate=gate, select=Softmax()) as routed:
        for row in ROWS:
            logits = routed.model(input_ids=torch.tensor([row.ids[: row.prompt_length]]), use_cache=False).logits[0]
            found += [float(-(p * p.log()).sum()) for p in logits.softmax(dim=-1)]
    assert len(found) == 7
    assert float(logged["train/prediction_entropy"]) == pytest.approx(sum(found) / 7, rel=1e-4)


@pytest.mark.parametrize("kind", [LinearGate, SequenceGate])
def test_prediction_entropy_reads_neither_answers_nor_true_choices(llama, bank, kind):
    gate, losses = moved(kind(bank.shape(WIDTH))), GateLosses(**NONE, prediction_entropy=1.0)
    first, _ = step(llama, bank, gate, batch_of([1, 5, 0]), losses)
    before = gradients(gate)
    others = [Encoded((*row.ids[: row.prompt_length], 21, 22), row.prompt_length) for row in ROWS]
    second, _ = step(llama, bank, gate, batch_of([3, 0, 8], others), losses)
    assert float(first["train/loss"]) == pytest.approx(float(second["train/loss"]), rel=1e-6)
    assert any(gradient.any() for gradient in before)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(before, gradients(gate), strict=True))


def test_a_gate_adapts_to_prompts_without_labels(llama, bank):
    """A few steps on the entropy alone, and the routed model, whose predictions are made to differ, is surer of its prompts."""
    outspoken = copy.deepcopy(llama)
    outspoken.lm_head.weight *= 30
    gate, losses = moved(LinearGate(bank.shape(WIDTH))), GateLosses(**NONE, prediction_entropy=1.0)
    optimizer, found = torch.optim.Adam(gate.parameters(), lr=0.1), []
    for _ in range(6):
        found.append(float(step(outspoken, bank, gate, batch_of([1, 5, 0]), losses)[0]["train/prediction_entropy"]))
        optimizer.step()
    assert found[-1] < 0.9 * found[0]


@pytest.mark.parametrize("delta", [1.0, -1.0])
def test_a_delta_that_takes_importance_away_is_refused(delta):
    with pytest.raises(ConfigError, match=f"localised_delta = {delta} leaves some experts no importance"):
        GateLosses(localised_delta=delta)


def test_settings_of_losses_are_no_losses():
    with pytest.raises(ConfigError, match="weight 0"):
        GateLosses(**NONE, balance_k=2, localised_delta=0.3)


class Told(RouterGate):
    """Remembers what it was told."""

    told: tuple[tuple[str, list[int]], ...] = ()

    def rebalance(self, site, load):
        self.told = (*self.told, (site, load.tolist()))
        super().rebalance(site, load)


@pytest.mark.parametrize(("granularity", "level"), [("token", "site"), ("prompt", "site"), ("token", "layer")])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_bias_follows_the_load_of_every_optimiser_step(llama, bank, granularity, level, accumulate):
    """Two steps: all decisions about real tokens of all their batches, each told once."""
    torch.manual_seed(0)
    gate = Told(bank.shape(WIDTH), granularity=granularity, level=level, balance_rate=0.5, init_std=0.5)
    stream = MixtureStream([Source(tuple(ROWS), 1, 3)], pad=0, seed=1)
    settings = TrainerSettings(steps=2, lr=1e-4, warmup=0, accumulate=accumulate)
    counted: dict[str, torch.Tensor] = {}

    def count(observation):
        if level == "layer" and not observation.site.endswith("q_proj"):
            return
        real = observation.attended if granularity == "token" else observation.attended[:, :1]
        taken = observation.routing.dense().gt(0) & real[..., None]
        counted[observation.site] = counted.get(observation.site, 0) + taken.sum(dim=(0, 1))

    with attached(llama, bank, gate=gate, select=TopK(k=2)) as routed, routed.observed(count):
        module = GateModule(routed, gate, GateLosses(supervision=0.0), settings)
        fit(module, StreamModule(stream), settings, seed=3, folder=Path("unused"), on_step=lambda *_: None)
    places = [site for site in bank.site_names if level == "site" or site.endswith("q_proj")]
    assert sorted(site for site, _ in gate.told) == sorted(2 * places)
    totals = {site: torch.zeros(EXPERTS, dtype=torch.long) for site in places}
    for site, load in gate.told:
        totals[site] += torch.tensor(load)
    assert all(torch.equal(totals[site], counted[site]) for site in places)
    decisions = 2 * accumulate * (12 if granularity == "token" else 3)
    assert all(int(total.sum()) == 2 * decisions for total in totals.values())
    for site in bank.site_names if level == "site" else places:
        bias = gate.load_bias(site)
        assert bias.any() and set(bias.abs().tolist()) <= {0.0, 0.5, 1.0}
    query = next(site for site in places if site.endswith("q_proj"))
    if level == "site":
        assert not gate.load_bias(query)[[0, 3, 6]].any() and not totals[query][[2, 5]].any()


def test_a_gate_without_a_bias_is_told_nothing(llama, bank):
    gate = Told(bank.shape(WIDTH))
    settings = TrainerSettings(steps=1)
    with attached(llama, bank, gate=gate, select=TopK(k=2)) as routed:
        module = GateModule(routed, gate, GateLosses(supervision=0.0), settings)
        stream = MixtureStream([Source(tuple(ROWS), 1, 3)], pad=0, seed=1)
        fit(module, StreamModule(stream), settings, seed=3, folder=Path("unused"), on_step=lambda *_: None)
    assert gate.told == ()
