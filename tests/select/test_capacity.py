"""Capacity serves decisions in their order while there is room, and is top-k where there is enough."""

import math

import pytest
import torch

from pmemx.core.errors import ConfigError
from pmemx.select.capacity import Capacity
from pmemx.select.top_k import TopK


def scores_for(*wanted: tuple[int, ...], choices: int = 5) -> torch.Tensor:
    """[1, decision, choice]: each decision wants these choices in this order, 0 being no expert."""
    scores = torch.full((1, len(wanted), choices), -3.0)
    for decision, order in enumerate(wanted):
        for rank, choice in enumerate(order):
            scores[0, decision, choice] = 2.0 - rank
    return scores


def random_scores(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2


def served(scores: torch.Tensor, k: int, factor: float, renormalise: bool) -> torch.Tensor:
    """One decision after the other, as the papers write it."""
    batch, tokens, choices = scores.shape
    share, experts = scores.double().softmax(dim=-1), choices - 1
    best = share.sort(dim=-1, descending=True, stable=True)
    room = [math.ceil(factor * k * batch * tokens / experts)] * experts
    weight = torch.zeros(batch, tokens, experts, dtype=torch.double)
    for rank in range(k):
        for row in range(batch):
            for token in range(tokens):
                expert = int(best.indices[row, token, rank]) - 1
                if expert < 0 or not room[expert]:
                    continue
                room[expert] -= 1
                whole = best.values[row, token, :k].sum() if renormalise else 1.0
                weight[row, token, expert] = best.values[row, token, rank] / whole
    return weight


def test_by_hand():
    """Four experts, six decisions: ceil(1.0 * 6 / 4) = 2 for each, so the third that wants expert 0 gets none."""
    scores = scores_for((1,), (1,), (2,), (1,), (0,), (1,))
    routing = Capacity(k=1, factor=1.0)(scores)
    sure = math.exp(2) / (math.exp(2) + 4 * math.exp(-3))
    assert routing.weight[0, :, 0].tolist() == pytest.approx([sure, sure, sure, 0.0, 0.0, 0.0])
    assert routing.index[0, :4, 0].tolist() == [0, 0, 1, 0]


def test_first_choices_are_served_before_second_ones():
    """Two experts, two decisions, k 2, half the room: ceil(0.5 * 2 * 2 / 2) = 1. The later first choice comes first."""
    scores = scores_for((2, 1), (1, 2), choices=3)
    dense = Capacity(k=2, factor=0.5, renormalise=True)(scores).dense()[0]
    first = 1 / (1 + math.exp(-1))
    assert torch.allclose(dense, torch.tensor([[0.0, first], [first, 0.0]]))


def test_rows_are_served_in_their_order_and_tokens_in_theirs():
    scores = scores_for((1,), choices=9).expand(3, 4, 9)
    weight = Capacity(k=1, factor=4.0)(scores).weight[..., 0]
    # ceil(4 * 12 / 8) = 6
    assert (weight > 0).flatten().tolist() == [True] * 6 + [False] * 6


def test_no_expert_has_room_for_all_and_takes_none_from_the_others():
    scores = scores_for((0,), (0,), (0,), (1,), (1,))
    assert (Capacity(factor=1.0)(scores).dense().sum(dim=-1) > 0)[0].tolist() == [False, False, False, True, True]


def test_a_choice_that_is_not_allowed_takes_no_room():
    scores = torch.full((1, 4, 2), -math.inf)
    scores[0, 2:, 1] = 0.0
    # ceil(0.5 * 4 / 1) = 2: the first two decisions may choose nothing, and the last two find room.
    assert Capacity(factor=0.5)(scores).dense()[0, :, 0].tolist() == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize(("k", "factor"), [(1, 0.5), (1, 1.25), (2, 0.7), (2, 1.0), (3, 1.25)])
def test_equals_one_decision_after_the_other(k, factor, renormalise):
    scores = random_scores(5, 7, 9)
    found = Capacity(k=k, factor=factor, renormalise=renormalise)(scores).dense()
    assert torch.allclose(found.double(), served(scores, k, factor, renormalise), atol=1e-6)
    assert (found > 0).sum(dim=(0, 1)).max() <= math.ceil(factor * k * 35 / 8)


@pytest.mark.parametrize("k", [1, 2, 8])
def test_with_room_for_all_it_is_top_k(k):
    scores = random_scores(4, 6, 9)
    for renormalise in (False, True):
        found = Capacity(k=k, factor=8.0, renormalise=renormalise)(scores)
        assert torch.equal(found.dense(), TopK(k=k, renormalise=renormalise)(scores).dense())


def test_a_whole_factor_gives_no_more_room_than_it_says():
    """1.1 * 10 is 11, although as floating numbers it is more."""
    scores = torch.stack([torch.zeros(20), torch.ones(20)], dim=-1)[None]
    assert int((Capacity(factor=0.55)(scores).dense() > 0).sum()) == 11


def test_who_got_none_gets_no_gradient():
    scores = scores_for((1,), (1,), (1,), (1,), choices=5).requires_grad_()
    Capacity(factor=2.0)(scores).dense().sum().backward()
    assert scores.grad[0, :2].abs().amin() > 0 and not scores.grad[0, 2:].any()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"k": 0}, "select.k = 0 chooses nothing"),
        ({"factor": 0.0}, "select.factor = 0.0 leaves no room"),
        ({"factor": math.inf}, "select.factor = inf leaves no room"),
        ({"temperature": 0.0}, "temperature = 0.0 must be positive"),
    ],
)
def test_what_cannot_be_chosen_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        Capacity(**settings)


def test_more_choices_than_experts_are_refused():
    with pytest.raises(ConfigError, match=r"select.k = 5 is larger than the 4 experts"):
        Capacity(k=5)(scores_for((1,)))
