"""SMILE measures how much of a token an update reads, in as many directions as it is told."""

import pytest
import torch

from pmemx.core.bank import BankShape
from pmemx.core.block import LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.gate.arrow import ArrowGate
from pmemx.gate.smile import SmileGate
from pmemx.select.top_k import TopK

SITE = "layers.0.up_proj"


def factors(seed: int, rank: int = 4, size: float = 1.0) -> LoraFactors:
    generator = torch.Generator().manual_seed(seed)
    return LoraFactors(torch.randn(rank, 16, generator=generator), torch.randn(24, rank, generator=generator), size)


EIGHT = [factors(seed, rank=1 + seed % 4) for seed in range(8)]


def shape(number: int) -> BankShape:
    return BankShape(tuple(f"e{i}" for i in range(number)), {SITE: 16}, 16)


def gate_of(*experts: LoraFactors | None, **settings) -> SmileGate:
    gate = SmileGate(shape(len(experts)), **settings)
    for number, expert in enumerate(experts):
        gate.read_expert(number, {} if expert is None else {SITE: expert})
    return gate


@pytest.fixture
def x():
    return torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(33))


@pytest.mark.parametrize("gate_k", [1, 2, 3, 16])
def test_scores_are_those_of_the_dense_decompositions(x, gate_k):
    vectors = [torch.linalg.svd(e.delta().double())[2][: min(gate_k, e.rank)].float() for e in EIGHT]
    expected = torch.stack([(x @ V.T).norm(dim=-1) for V in vectors], dim=-1)
    assert torch.allclose(gate_of(*EIGHT, gate_k=gate_k)(SITE, x)[..., 1:], expected, atol=1e-5)


def test_by_hand():
    """An update that reads the first three axes with gains 5, 2 and 1; two directions are kept, and the gains do not matter."""
    expert = LoraFactors(torch.eye(16)[:3], torch.eye(24)[:, :3] * torch.tensor([5.0, 2.0, 1.0]), 1.0)
    x = torch.zeros(1, 1, 16)
    x[0, 0, :4] = torch.tensor([3.0, 4.0, 12.0, 7.0])
    assert torch.allclose(gate_of(expert, gate_k=2)(SITE, x)[0, 0, 1], torch.tensor(5.0))
    assert torch.allclose(gate_of(expert)(SITE, x)[0, 0, 1], torch.tensor(13.0))


def test_one_direction_is_arrow(x):
    arrow = ArrowGate(shape(8))
    for number, expert in enumerate(EIGHT):
        arrow.read_expert(number, {SITE: expert})
    assert torch.allclose(gate_of(*EIGHT, gate_k=1)(SITE, x), arrow(SITE, x), atol=1e-6)


def test_weights_are_the_published_ones(x):
    """Softmax over all experts, the k best, renormalised."""
    scores = gate_of(*EIGHT)(SITE, x)
    share, best = scores[..., 1:].softmax(dim=-1).topk(3, dim=-1)
    expected = torch.zeros(2, 5, 8).scatter(-1, best, share / share.sum(dim=-1, keepdim=True))
    assert torch.allclose(TopK(k=3)(scores).dense(), expected, atol=1e-6)


def test_the_size_of_an_expert_has_no_say(x):
    large = [factors(0, rank=1, size=20.0), *EIGHT[1:]]
    assert torch.allclose(gate_of(*EIGHT)(SITE, x), gate_of(*large)(SITE, x), atol=1e-5)


def test_more_directions_catch_more_of_any_token(x):
    scores = torch.stack([gate_of(*EIGHT, gate_k=k)(SITE, x)[..., 1:] for k in (1, 2, 3, 4)])
    assert scores.diff(dim=0).ge(-1e-5).all() and scores[-1].lt(x.norm(dim=-1, keepdim=True)).all()


def test_normalised_scores_ignore_the_length_of_a_token(x):
    gate = gate_of(*EIGHT, normalise=True)
    assert torch.allclose(gate(SITE, x), gate(SITE, 1e3 * x), atol=1e-6)
    assert gate(SITE, x)[..., 1:].le(1).all()


def test_an_expert_that_skips_the_site_scores_nothing_there(x):
    scores = gate_of(factors(0), None, LoraFactors(torch.randn(2, 16), torch.zeros(24, 2), 1.0))(SITE, x)
    assert scores[..., 1].gt(0).all() and scores[..., 2:].eq(0).all()


def test_a_swapped_expert_is_read_again_whatever_its_rank(x):
    gate = gate_of(factors(0, rank=2), factors(1, rank=2))
    for rank in (4, 1):
        gate.read_expert(0, {SITE: factors(2, rank=rank)})
        fresh = gate_of(factors(2, rank=rank), factors(1, rank=2))
        assert torch.allclose(gate(SITE, x), fresh(SITE, x), atol=1e-6)


def test_no_direction_is_refused():
    with pytest.raises(ConfigError, match=r"gate\.gate_k = 0"):
        gate_of(*EIGHT, gate_k=0)
