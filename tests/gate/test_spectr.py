"""SpectR measures how much an update moves a token; its normalisations take the size of the update out."""

import pytest
import torch

from pmemx.core.bank import BankShape
from pmemx.core.block import LoraFactors
from pmemx.gate.spectr import SpectrGate
from pmemx.select.top_k import TopK

SITE = "layers.0.up_proj"


def factors(seed: int, rank: int = 4, size: float = 1.0) -> LoraFactors:
    generator = torch.Generator().manual_seed(seed)
    return LoraFactors(torch.randn(rank, 16, generator=generator), torch.randn(24, rank, generator=generator), size)


def gate_of(*experts: LoraFactors | None, **settings) -> SpectrGate:
    gate = SpectrGate(BankShape(tuple(f"e{i}" for i in range(len(experts))), {SITE: 16}, 16), **settings)
    for number, expert in enumerate(experts):
        gate.read_expert(number, {} if expert is None else {SITE: expert})
    return gate


@pytest.fixture
def x():
    return torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(3))


def test_raw_is_the_norm_of_the_update_of_the_token(x):
    experts = [factors(0), factors(1, rank=2, size=3.0)]
    expected = torch.stack([(x @ e.delta().T).norm(dim=-1) for e in experts], dim=-1)
    assert torch.allclose(gate_of(*experts, spectrum="raw")(SITE, x)[..., 1:], expected, rtol=1e-5)


@pytest.mark.parametrize(("spectrum", "norm"), [("frobenius", "fro"), ("spectral", 2)])
def test_is_divided_by_a_norm_of_the_update(x, spectrum, norm):
    experts = [factors(0), factors(1, rank=2, size=3.0)]
    expected = torch.stack(
        [(x @ e.delta().T).norm(dim=-1) / torch.linalg.matrix_norm(e.delta(), norm) for e in experts], dim=-1
    )
    assert torch.allclose(gate_of(*experts, spectrum=spectrum)(SITE, x)[..., 1:], expected, rtol=1e-5)


def test_flat_is_the_part_of_the_token_inside_the_update_by_hand():
    """An update that reads the first two axes with gains 5 and 1; both count alike, and their squares sum to 1."""
    expert = LoraFactors(torch.eye(16)[:2], torch.eye(24)[:, :2] * torch.tensor([5.0, 1.0]), 1.0)
    x = torch.zeros(1, 1, 16)
    x[0, 0, :3] = torch.tensor([3.0, 4.0, 7.0])
    assert torch.allclose(gate_of(expert, spectrum="flat")(SITE, x)[0, 0, 1], torch.tensor(5 / 2**0.5))


@pytest.mark.parametrize(
    ("spectrum", "captured"), [("frobenius", False), ("spectral", False), ("flat", False), ("raw", True)]
)
def test_an_expert_20_times_larger_captures_everything_only_when_raw(spectrum, captured):
    x = torch.randn(4, 50, 16, generator=torch.Generator().manual_seed(3))
    gate = gate_of(factors(0, size=20.0), *[factors(seed) for seed in range(1, 8)], spectrum=spectrum)
    share = (gate(SITE, x).argmax(dim=-1) == 1).float().mean()
    assert share > 0.99 if captured else share < 0.4


@pytest.mark.parametrize("spectrum", ["frobenius", "spectral", "flat", "raw"])
def test_an_expert_that_skips_the_site_scores_nothing_there(x, spectrum):
    empty = LoraFactors(torch.randn(2, 16), torch.zeros(24, 2), 1.0)
    scores = gate_of(factors(0), None, empty, spectrum=spectrum)(SITE, x)
    assert scores[..., 1].gt(0).all() and scores[..., 2:].eq(0).all()


def test_a_swapped_expert_is_read_again_whatever_its_rank(x):
    gate = gate_of(factors(0, rank=2), factors(1, rank=2))
    for rank in (4, 1):
        gate.read_expert(0, {SITE: factors(2, rank=rank)})
        fresh = gate_of(factors(2, rank=rank), factors(1, rank=2))
        assert torch.allclose(gate(SITE, x), fresh(SITE, x), atol=1e-6)


def test_a_high_temperature_gives_the_four_best_a_quarter_each_as_released(x):
    scores = gate_of(*[factors(seed) for seed in range(8)], spectrum="flat")(SITE, x)
    weights = TopK(k=4, temperature=1000)(scores).dense()
    expected = torch.zeros(2, 5, 8).scatter(-1, scores[..., 1:].topk(4, dim=-1).indices, 0.25)
    assert torch.allclose(weights, expected, rtol=2e-3)
