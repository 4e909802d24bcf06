"""Training experts together with their gate: which losses they bear, and a run that is killed and goes on."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from pmemx.core.bank import ExpertBank
from pmemx.core.block import BlockCard, CapabilityBlock
from pmemx.core.encoding import Encoded, collate
from pmemx.core.errors import ConfigError
from pmemx.core.gate_loss import balance_loss, z_loss
from pmemx.core.routing import Select
from pmemx.core.structure import Structure
from pmemx.core.trainable import TrainableFactors
from pmemx.gate.router import RouterGate
from pmemx.lit.fit import fit, newest
from pmemx.lit.gate_module import GateBatch, GateLosses, MixtureStream, Source
from pmemx.lit.settings import TrainerSettings
from pmemx.lit.stream import StreamModule
from pmemx.lit.together_module import TogetherModule
from pmemx.runtime.attach import attached
from pmemx.runtime.linear_sites import linear_sites
from pmemx.select.softmax import Softmax
from pmemx.select.top_k import TopK
from pmemx.together.hydralora import HydraLora
from pmemx.together.loramoe import LoraMoe
from pmemx.together.mixlora import MixLora
from pmemx.together.mola import Mola

WIDTH = 16
MOE = LoraMoe(num_experts=8, rank=2, alpha=4, targets=("up_proj",))
MIX = MixLora(num_experts=3, rank=2, alpha=4, routed=("up_proj",), plain=("q_proj",))
ROWS = [Encoded((1, 5, 9, 12, 7), 3), Encoded((1, 6, 8), 2), Encoded((1, 4, 3, 11), 2)]


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def newborn(structure: Structure, llama: LlamaForCausalLM) -> list[CapabilityBlock]:
    born = structure.experts(linear_sites(llama), torch.Generator().manual_seed(0))
    return [CapabilityBlock(BlockCard(f"e{number}", "d", ""), own) for number, own in enumerate(born)]


def batch_of(choice: list[int], padding: int = 0) -> GateBatch:
    rows = collate(ROWS, 0)
    if padding:
        rows = collate([*ROWS, Encoded((1,) * (5 + padding), 1)], 0)
        rows = type(rows)(rows.ids[:3], rows.attention[:3], rows.prompt[:3])
    return GateBatch(rows, torch.tensor(choice), torch.ones(3, dtype=torch.bool))


def step(
    llama: LlamaForCausalLM,
    structure: Structure,
    losses: GateLosses,
    batch: GateBatch,
    select: Select | None = None,
    init_std: float = 0.5,
) -> tuple[dict[str, float], dict[str, Tensor], dict[str, Tensor]]:
    """What one step logs, the scores at every site, and all gradients; B is moved, so that every gradient is there."""
    blocks, logged, scores = newborn(structure, llama), {}, {}
    bank = ExpertBank(blocks)
    torch.manual_seed(1)
    gate = RouterGate(bank.shape(WIDTH), init_std=init_std)
    with attached(llama, bank, gate=gate, select=select or Softmax()) as routed:
        factors = TrainableFactors(bank, blocks)
        for name, parameter in factors.named_parameters():
            if name.endswith("B"):
                parameter.data.normal_(std=0.2)
        module = TogetherModule(routed, gate, factors, losses, [False, True, False], TrainerSettings())
        module.log = lambda name, value, **_: logged.update({name: float(value)})  # type: ignore[method-assign]
        module.log_dict = lambda values, **_: logged.update(  # type: ignore[method-assign]
            {name: float(value) for name, value in values.items()}
        )
        with routed.observed(lambda seen: scores.update({seen.site: seen.scores.detach()})):
            module.training_step(batch, 0).backward()
        return logged, scores, {name: p.grad for name, p in module.named_parameters()}


def answers_alone(**terms: float) -> GateLosses:
    return GateLosses(**({"supervision": 0.0} | terms))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["supervision", "mole_balance", "prediction_entropy"])
def test_a_loss_that_needs_experts_of_known_domains_is_refused(llama, name):
    with pytest.raises(ConfigError, match=f"losses.{name} = 0.5 means nothing to experts that are trained together"):
        step(llama, MOE, GateLosses(**({"supervision": 0.0} | {name: 0.5})), batch_of([1, 2, 0]))


def test_experts_that_nothing_teaches_are_refused(llama):
    with pytest.raises(ConfigError, match="teaches the experts nothing"):
        step(llama, MOE, answers_alone(language_model=0.0, balance=1.0), batch_of([1, 2, 0]))


def test_a_balance_that_counts_more_experts_than_a_site_has_is_refused(llama):
    with pytest.raises(ConfigError, match="balance_k = 4 is larger than the 3 experts at a site"):
        step(llama, MIX, answers_alone(balance=1.0, balance_k=4), batch_of([1, 2, 0]))


def test_the_answers_cross_entropy_is_that_of_the_routed_model(llama):
    logged, _, _ = step(llama, MOE, answers_alone(), batch_of([1, 2, 0]))
    assert logged.keys() == {"train/language_model", "train/loss"}
    assert logged["train/loss"] == logged["train/language_model"]


def test_terms_are_taken_site_by_site_over_the_experts_that_are_there(llama):
    """At attention sites one expert stands by itself, which leaves nothing to balance."""
    logged, scores, _ = step(
        llama, MIX, answers_alone(balance=0.1, balance_k=2, z=0.01), batch_of([1, 2, 0]), select=TopK(k=2)
    )
    attended = batch_of([1, 2, 0]).rows.attention
    routed = [found[attended][:, 1:] for site, found in scores.items() if site.endswith("up_proj")]
    assert len(routed) == 2 and len(scores) == 4
    balance = torch.stack([balance_loss(found.softmax(dim=-1), 2) for found in routed]).mean()
    z = torch.stack([z_loss(found) for found in routed]).mean()
    assert logged["train/balance"] == pytest.approx(float(balance), rel=1e-5)
    assert logged["train/z"] == pytest.approx(float(z), rel=1e-5)
    total = logged["train/language_model"] + 0.1 * float(balance) + 0.01 * float(z)
    assert logged["train/loss"] == pytest.approx(total, rel=1e-5)


def test_localised_balance_is_that_of_the_paper(llama):
    """Half of the experts for rows of domain 1, which ask for knowledge, the other half for the rest."""
    delta, batch = 0.3, batch_of([1, 2, 0])
    logged, scores, _ = step(llama, MOE, answers_alone(localised_balance=0.1, localised_delta=delta), batch)
    found = []
    for seen in scores.values():
        Z = torch.zeros(3, 8)
        for row, length in enumerate((5, 3, 4)):
            for expert in range(8):
                agree = (expert < 4) == (row == 0)
                importance = sum(float(seen[row, token, 1:].softmax(dim=0)[expert]) for token in range(length))
                Z[row, expert] = importance * (1 + delta if agree else 1 - delta)
        found.append(Z.var(correction=0) / Z.mean() ** 2)
    assert logged["train/localised_balance"] == pytest.approx(float(torch.stack(found).mean()), rel=1e-5)


@pytest.mark.parametrize("structure", [MOE, MIX, HydraLora(targets=("down_proj",)), Mola(num_experts=(2, 3), rank=2)])
def test_padding_changes_no_loss_and_no_gradient(llama, structure):
    losses = answers_alone(balance=0.1, balance_k=2, z=0.1, importance=0.1, localised_balance=0.1)
    tight = step(llama, structure, losses, batch_of([1, 2, 0]), select=TopK(k=2))
    loose = step(llama, structure, losses, batch_of([1, 2, 0], padding=4), select=TopK(k=2))
    assert loose[0] == pytest.approx(tight[0], abs=1e-5)
    for name, gradient in tight[2].items():
        assert torch.allclose(loose[2][name], gradient, atol=1e-5), name


class Killed(Exception):
    """What ends a run in the middle."""


def trained(
    llama: LlamaForCausalLM, folder: Path, *, resume: bool = False, die_at: int = 0, balance_rate: float = 0.0
) -> tuple[dict[str, Tensor], tuple[CapabilityBlock, ...], RouterGate]:
    """Eight steps of a mixture whose experts share an A, on two domains and general text."""
    blocks = newborn(HydraLora(num_experts=4, rank=2, alpha=4, targets=("up_proj", "down_proj")), llama)
    bank = ExpertBank(blocks)
    torch.manual_seed(1)
    gate = RouterGate(bank.shape(WIDTH), balance_rate=balance_rate)
    generator = torch.Generator().manual_seed(2)
    sources = [
        Source(
            tuple(
                Encoded((*torch.randint(3, 31, (2 + i % 3,), generator=generator).tolist(), 3 + choice), 2)
                for i in range(6)
            ),
            choice,
            2,
        )
        for choice in range(3)
    ]
    settings = TrainerSettings(steps=8, lr=1e-2, warmup=2, checkpoint_every=2, resume=resume)

    def on_step(step: int, values: dict[str, float]) -> None:
        if step == die_at:
            raise Killed

    with attached(llama, bank, gate=gate, select=TopK(k=2)) as routed:
        factors = TrainableFactors(bank, blocks)
        module = TogetherModule(routed, gate, factors, answers_alone(), [False, True, False], settings)
        stream = StreamModule(MixtureStream(sources, pad=0, seed=5))
        assert fit(module, stream, settings, seed=3, folder=folder, on_step=on_step) == 8
    return {name: value.clone() for name, value in module.state_dict().items()}, factors.blocks(), gate


def test_a_killed_run_goes_on_bit_for_bit_and_its_checkpoint_holds_what_trains(llama, tmp_path):
    whole, blocks, _ = trained(llama, tmp_path / "whole")
    with pytest.raises(Killed):
        trained(llama, tmp_path / "killed", die_at=5)
    checkpoint = newest(tmp_path / "killed")
    assert checkpoint is not None and int(checkpoint.stem) == 4
    resumed, again, _ = trained(llama, tmp_path / "killed", resume=True)
    assert whole.keys() == resumed.keys() and all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert {name.partition(".")[0] for name in whole} == {"gate", "factors"}
    for one, other in zip(blocks, again, strict=True):
        for site, own in one.factors.items():
            assert torch.equal(own.B, other.factors[site].B) and torch.equal(own.A, blocks[0].factors[site].A)


def test_a_load_bias_follows_the_loads_of_the_steps(llama, tmp_path):
    *_, gate = trained(llama, tmp_path / "balanced", balance_rate=0.001)
    *_, still = trained(llama, tmp_path / "still")
    for site in gate.shape.sites:
        bias = gate.load_bias(site)
        assert bias is not None and bias[0] == 0 and still.load_bias(site) is None
        # Eight moves of 0.001 up, down or not at all.
        moves = bias[1:] / 0.001
        assert torch.allclose(moves, moves.round(), atol=1e-3) and moves.abs().max() <= 8 and moves.any()
