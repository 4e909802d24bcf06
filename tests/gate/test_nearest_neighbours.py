"""Nearest neighbours sends a prompt to the expert of the examples that it resembles most."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.core.errors import ConfigError
from pmemx.core.gate import NEVER
from pmemx.core.grown import grown
from pmemx.gate.nearest_neighbours import NearestNeighboursGate

WIDTH = 12
NAMES = tuple(f"e{i}" for i in range(8))
CHOICE = torch.arange(9).repeat_interleave(20)


def shape(names: tuple[str, ...] = NAMES) -> BankShape:
    return BankShape(names, {"layers.0.up_proj": WIDTH}, WIDTH)


def gate_of(**settings) -> NearestNeighboursGate:
    return NearestNeighboursGate(shape(), **settings)


@pytest.fixture(scope="module")
def pooled():
    """Twenty examples of every choice, each around one of four points of its choice."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(9, 4, WIDTH, generator=generator)
    return points.repeat(1, 5, 1).flatten(0, 1)[:, None] + 0.2 * torch.randn(180, 1, WIDTH, generator=generator)


@pytest.fixture
def asked():
    return torch.randn(5, 3, WIDTH, generator=torch.Generator().manual_seed(4))


def seen(gate: NearestNeighboursGate, pooled: Tensor, choice: Tensor) -> NearestNeighboursGate:
    gate.see(pooled, choice)
    return gate


@pytest.mark.parametrize("k", [1, 3, 20])
def test_scores_are_mean_cosines_of_the_nearest_among_all_examples(pooled, asked, k):
    cosine = F.cosine_similarity(asked[:, :, None], pooled[:, 0], dim=-1).unflatten(-1, (9, 20))
    expected = cosine.sort(dim=-1, descending=True).values[..., :k].mean(dim=-1)
    assert torch.allclose(seen(gate_of(k=k), pooled, CHOICE).score(asked, None), expected, atol=1e-6)


def test_by_hand():
    axes = torch.eye(WIDTH)[:, None]
    given = torch.cat([axes[:1], axes[:1] + axes[1:2], 7 * axes[2:3]])
    scores = {
        k: seen(NearestNeighboursGate(shape(("law", "botany")), k=k), given, torch.tensor([1, 1, 2])).score(
            axes[None, 0], None
        )
        for k in (1, 2)
    }
    assert torch.allclose(scores[1], torch.tensor([[[NEVER, 1.0, 0.0]]]))
    assert torch.allclose(scores[2], torch.tensor([[[NEVER, (1 + 0.5**0.5) / 2, 0.0]]]))


def test_an_expert_with_several_kinds_of_prompts_is_found_by_each(pooled):
    """Every prompt lies by one of four points of its expert, none of which is their mean."""
    known = torch.arange(180) % 20 < 8
    found = seen(gate_of(), pooled[known], CHOICE[known]).score(pooled[~known], None)[:, 0].argmax(dim=-1)
    assert (found == CHOICE[~known]).float().mean() > 0.95


@pytest.mark.parametrize("capacity", [5, 256])
def test_the_order_and_the_batches_of_examples_do_not_matter(pooled, capacity):
    whole, pieces = seen(gate_of(capacity=capacity), pooled, CHOICE), gate_of(capacity=capacity)
    for index in torch.randperm(180, generator=torch.Generator().manual_seed(1)).split(7):
        pieces.see(pooled[index], CHOICE[index])
    for key, value in whole.state_dict().items():
        assert torch.equal(value, pieces.state_dict()[key]), key


def test_keeps_as_many_different_examples_as_there_is_room_for_and_of_no_kind():
    """The mean of the sample is that of the whole, up to four standard errors."""
    gate = seen(
        gate_of(capacity=64),
        torch.randn(1000, 1, WIDTH, generator=torch.Generator().manual_seed(2)),
        torch.ones(1000, dtype=torch.long),
    )
    kept = gate.get_buffer("examples")[1]
    assert gate.get_buffer("hashes")[1].gt(0).all() and kept.unique(dim=0).shape == (64, WIDTH)
    assert kept.mean(dim=0).abs().max() < 4 / (64 * WIDTH) ** 0.5
    assert torch.allclose(kept.norm(dim=-1), torch.ones(64))


def test_examples_that_rounding_alone_tells_apart_have_one_hash(pooled):
    cells = (pooled * 1024).round() / 1024
    first, second = seen(gate_of(), cells, CHOICE), seen(gate_of(), cells + 1e-4, CHOICE)
    assert torch.equal(first.get_buffer("hashes"), second.get_buffer("hashes"))


def test_fewer_examples_than_neighbours_all_count(pooled, asked):
    few = seen(gate_of(k=50, capacity=60), pooled, CHOICE)
    assert torch.allclose(few.score(asked, None), seen(gate_of(k=20), pooled, CHOICE).score(asked, None), atol=1e-6)


def test_text_that_needs_no_expert_has_its_own_examples_or_a_constant(pooled):
    experts, general = CHOICE > 0, pooled[CHOICE == 0]
    assert seen(gate_of(), pooled[experts], CHOICE[experts]).score(general, None)[..., 0].eq(NEVER).all()
    constant = seen(gate_of(abstain=1.1), pooled[experts], CHOICE[experts])
    assert constant.score(general, None).argmax(dim=-1).eq(0).all()
    assert seen(gate_of(), pooled, CHOICE).score(general, None).argmax(dim=-1).eq(0).all()


def test_an_expert_without_examples_is_named(pooled, asked):
    known = (CHOICE != 3) & (CHOICE != 8)
    with pytest.raises(ConfigError, match="no example of e2, e7; show it prompts of every expert"):
        seen(gate_of(), pooled[known], CHOICE[known]).score(asked, None)


def test_grows_by_an_expert_and_keeps_what_it_knows(pooled, asked):
    gate = seen(gate_of(capacity=5), pooled, CHOICE)
    larger = grown(gate, NearestNeighboursGate(shape(("new", *NAMES)), capacity=5))
    assert isinstance(larger, NearestNeighboursGate)
    with pytest.raises(ConfigError, match="no example of new"):
        larger.score(asked, None)
    larger.see(asked[:, :1], torch.ones(5, dtype=torch.long))
    assert torch.equal(larger.score(asked, None)[..., [0, *range(2, 10)]], gate.score(asked, None))
    assert torch.allclose(larger.score(asked[:, :1], None)[..., 1], torch.ones(5, 1))


def test_tokens_are_read_at_unit_length():
    hidden = torch.randn(2, 3, WIDTH)
    assert torch.allclose(gate_of().read(hidden).square().mean(dim=-1), torch.ones(2, 3), atol=1e-4)
    assert torch.allclose(gate_of().read(hidden), gate_of().read(1e3 * hidden), atol=1e-4)


@pytest.mark.parametrize(("k", "capacity"), [(0, 5), (6, 5)])
def test_neighbours_that_are_not_stored_are_refused(k, capacity):
    with pytest.raises(ConfigError, match=rf"gate\.k = {k} must be at least 1 and at most gate\.capacity = 5"):
        gate_of(k=k, capacity=capacity)
