"""Arrow finds the direction of an update, whatever its size, and gives PEFT's numbers where PEFT is right."""

import pytest
import torch
from peft import ArrowConfig, create_arrow_model
from peft.tuners.lora.arrow import ArrowLoraLinearLayer
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.core.block import LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.gate.arrow import ArrowGate
from pmemx.runtime.attach import attached
from pmemx.select.top_k import TopK
from tests.gate.conftest import copied

SITE = "layers.0.up_proj"


def factors(seed: int, rank: int = 4, width: int = 16) -> LoraFactors:
    generator = torch.Generator().manual_seed(seed)
    return LoraFactors(
        torch.randn(rank, width, generator=generator), torch.randn(24, rank, generator=generator), scale=1.0
    )


def gate_of(*experts: LoraFactors | None, **settings) -> ArrowGate:
    gate = ArrowGate(BankShape(tuple(f"e{i}" for i in range(len(experts))), {SITE: 16}, 16), **settings)
    for number, expert in enumerate(experts):
        gate.read_expert(number, {} if expert is None else {SITE: expert})
    return gate


def peft_layer(seed: int) -> ArrowLoraLinearLayer:
    config = ArrowConfig(rng_seed=seed)
    config.task_adapter_names = []
    return ArrowLoraLinearLayer(16, config)


def test_by_hand():
    """Expert 0 stretches the first axis by 3 and the second by 1, expert 1 the third; a token scores its share of these."""
    first = LoraFactors(torch.eye(16)[:2], torch.eye(24)[:, :2] * torch.tensor([3.0, 1.0]), 1.0)
    second = LoraFactors(torch.eye(16)[2:3], torch.eye(24)[:, :1], 100.0)
    x = torch.zeros(1, 2, 16)
    x[0, 0, :3] = torch.tensor([-4.0, 5.0, 0.5])
    x[0, 1, 2] = 2
    assert torch.allclose(gate_of(first, second)(SITE, x)[..., 1:], torch.tensor([[[4.0, 0.5], [0.0, 2.0]]]), atol=1e-6)


@pytest.mark.parametrize("noise", [0.05, 0.15])
def test_finds_the_expert_whose_direction_was_planted(noise):
    experts = [factors(seed) for seed in range(6)]
    generator = torch.Generator().manual_seed(9)
    gate = gate_of(*experts)
    planted = torch.linalg.svd(torch.stack([e.delta() for e in experts]))[2][:, 0]
    x = planted[:, None] + noise * torch.randn(6, 50, 16, generator=generator)
    found = gate(SITE, x).argmax(dim=-1) - 1
    assert (found == torch.arange(6)[:, None]).float().mean() > 0.9


def test_the_size_of_an_expert_has_no_say():
    small = factors(0)
    large = LoraFactors(small.A, small.B, 20.0)
    x = torch.randn(2, 5, 16)
    assert torch.allclose(gate_of(small, factors(1))(SITE, x), gate_of(large, factors(1))(SITE, x), atol=1e-5)


def test_normalised_scores_ignore_the_length_of_a_token():
    x = torch.randn(2, 5, 16)
    gate = gate_of(factors(0), factors(1), normalise=True)
    assert torch.allclose(gate(SITE, x), gate(SITE, 1e3 * x), atol=1e-6)
    assert gate(SITE, x)[..., 1:].le(1).all()


def test_an_expert_that_skips_the_site_scores_nothing_there():
    x = torch.randn(2, 5, 16)
    scores = gate_of(factors(0), None, LoraFactors(torch.randn(2, 16), torch.zeros(24, 2), 1.0))(SITE, x)
    assert scores[..., 1].gt(0).all() and scores[..., 2:].eq(0).all()


def test_a_swapped_expert_is_read_again():
    gate = gate_of(factors(0), factors(1))
    gate.read_expert(0, {SITE: factors(2)})
    assert torch.equal(gate.prototypes(SITE), gate_of(factors(2), factors(1)).prototypes(SITE))


def test_abstains_below_a_threshold_when_told_to():
    gate = gate_of(factors(0), abstain=0.5)
    scores = gate(SITE, 1e-3 * torch.ones(1, 1, 16))
    assert scores.argmax(dim=-1).item() == 0
    assert gate_of(factors(0))(SITE, torch.zeros(1, 1, 16)).argmax(dim=-1).item() == 1


def test_no_iterations_are_refused():
    with pytest.raises(ConfigError, match="power_iterations = 0"):
        gate_of(factors(0), power_iterations=0)


@pytest.mark.parametrize("seed", [0, 42])
def test_power_iterations_are_those_of_peft(seed):
    theirs = peft_layer(seed)
    experts = [factors(number) for number in range(8)]
    expected = torch.stack([theirs.top_right_singular_vec_from_BA(e.A, e.B) for e in experts])
    gate = gate_of(*experts, power_iterations=15, seed=seed)
    assert torch.allclose(gate.prototypes(SITE), expected, atol=1e-6)


def test_peft_agrees_when_it_may_iterate_long_enough():
    theirs = peft_layer(0)
    experts = [factors(number) for number in range(8)]
    exact = gate_of(*experts).prototypes(SITE)
    long = torch.stack([theirs.top_right_singular_vec_from_BA(e.A, e.B, iters=20_000) for e in experts])
    short = torch.stack([theirs.top_right_singular_vec_from_BA(e.A, e.B) for e in experts])
    assert F.cosine_similarity(exact, long).abs().min() > 1 - 1e-5
    assert F.cosine_similarity(exact, short).abs().min() < 0.99


def test_logits_are_those_of_peft(llama, folders, bank, ids):
    """With exact prototypes in both: top 3, temperature 1, mixed alphas."""
    theirs = create_arrow_model(
        copied(llama), [str(path) for path in folders], ArrowConfig(top_k=3, router_temperature=1.0, rng_seed=0)
    ).eval()
    theirs(input_ids=ids)  # prototypes are built in the first pass
    gate = ArrowGate(bank.shape(32))
    with torch.no_grad(), attached(llama, bank, gate=gate, select=TopK(k=3)) as routed:
        ours = routed.model(input_ids=ids).logits
        for name, module in theirs.base_model.model.named_modules():
            if name in bank.site_names:
                module.lora_arrow["arrow_router"].prototypes.copy_(gate.prototypes(name))
        assert (ours - theirs(input_ids=ids).logits).abs().max() < 2e-6
    with torch.no_grad():
        assert (ours - llama(input_ids=ids).logits).abs().max() > 0.01
