"""The losses of a gate: by hand, and against transformers' mixtures of experts."""

import math

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.models.switch_transformers.modeling_switch_transformers import router_z_loss_func

from pmemx.core.gate import NEVER
from pmemx.core.gate_loss import (
    balance_loss,
    entropy_loss,
    importance_loss,
    mutual_information_loss,
    supervision_loss,
    z_loss,
)


def random_scores(decisions: int, choices: int) -> torch.Tensor:
    return torch.randn(decisions, choices, generator=torch.Generator().manual_seed(0)) * 2


@pytest.mark.parametrize("experts", [8, 16])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_balance_equals_transformers(experts, k):
    """Where transformers counts experts, choices are counted here, no expert being one."""
    scores = random_scores(50, experts + 1)
    theirs = load_balancing_loss_func((scores,), num_experts=experts + 1, top_k=k)
    assert balance_loss(scores.softmax(dim=-1), k).item() == pytest.approx(float(theirs), abs=1e-6)


def test_balance_of_the_attended_tokens_of_two_sites_equals_transformers():
    scores, attended = random_scores(2 * 3 * 7, 9).view(2, 3, 7, 9), torch.arange(7) < torch.tensor([[7], [4], [2]])
    theirs = load_balancing_loss_func(tuple(scores.reshape(2, -1, 9)), 9, 2, attended.long())
    ours = balance_loss(torch.cat([site[attended] for site in scores]).softmax(dim=-1), 2)
    assert ours.item() == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_balance_is_k_when_balanced_and_the_number_of_choices_when_collapsed(k):
    circle = sum(torch.eye(8).roll(shift, dims=1) / (shift + 1) for shift in range(k))
    assert balance_loss(circle / circle.sum(dim=1, keepdim=True), k).item() == pytest.approx(k, abs=1e-5)
    assert balance_loss(torch.eye(8)[[2] * 8], k).item() == pytest.approx(8.0)


def test_importance_by_hand():
    share = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.25, 0.25]])  # summed: 1, 3/4, 1/4; mean 2/3
    variance = ((1 / 3) ** 2 + (1 / 12) ** 2 + (5 / 12) ** 2) / 3
    assert importance_loss(share).item() == pytest.approx(variance / (2 / 3) ** 2)


def test_importance_is_zero_when_balanced_and_choices_less_one_when_collapsed():
    assert importance_loss(torch.eye(8)).item() == pytest.approx(0.0)
    assert importance_loss(torch.full((3, 8), 1 / 8)).item() == pytest.approx(0.0)
    assert importance_loss(torch.eye(8)[[2] * 5]).item() == pytest.approx(7.0)


def test_z_equals_transformers():
    scores = random_scores(60, 9)
    theirs = router_z_loss_func(scores.view(4, 15, 9))
    assert z_loss(scores).item() == pytest.approx(float(theirs), rel=1e-6)


def test_z_by_hand():
    assert z_loss(torch.zeros(3, 4)).item() == pytest.approx(math.log(4) ** 2)


def test_entropy_lies_between_zero_and_log_choices():
    assert entropy_loss(torch.eye(4)).item() == pytest.approx(0.0)
    assert entropy_loss(torch.full((2, 4), 0.25)).item() == pytest.approx(math.log(4))


def test_mutual_information_is_best_when_sharp_and_balanced():
    sharp, collapsed, flat = torch.eye(4), torch.eye(4)[[0] * 4], torch.full((4, 4), 0.25)
    assert mutual_information_loss(sharp).item() == pytest.approx(-math.log(4))
    assert mutual_information_loss(collapsed).item() == pytest.approx(0.0)
    assert mutual_information_loss(flat).item() == pytest.approx(0.0, abs=1e-6)


def test_supervision_by_hand():
    scores = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
    assert supervision_loss(scores, torch.tensor([1, 0])).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


@pytest.mark.parametrize("never", [NEVER, -math.inf])
def test_supervision_leaves_out_a_truth_that_cannot_be_chosen(never):
    scores = torch.tensor([[never, 0.0, 1.0], [never, 2.0, 1.0]], requires_grad=True)
    found = supervision_loss(scores, torch.tensor([0, 1]))
    assert found.item() == pytest.approx(math.log(1 + math.exp(-1)))
    found.backward()
    assert scores.grad is not None and scores.grad.isfinite().all() and not scores.grad[0].any()
    assert supervision_loss(scores, torch.tensor([0, 0])).item() == 0.0


@pytest.mark.parametrize("loss", [balance_loss, importance_loss, entropy_loss, mutual_information_loss])
def test_gradients_are_finite_where_a_choice_is_not_allowed(loss):
    scores = random_scores(6, 5)
    scores[:3, 2:] = -math.inf
    scores.requires_grad_()
    loss(scores.softmax(dim=-1)).backward()
    assert scores.grad is not None and scores.grad.isfinite().all() and scores.grad.any()


@pytest.mark.parametrize("loss", [balance_loss, importance_loss, entropy_loss, mutual_information_loss])
def test_the_order_of_decisions_and_of_choices_does_not_matter(loss):
    share = random_scores(20, 6).softmax(dim=-1)
    generator = torch.Generator().manual_seed(1)
    moved = share[torch.randperm(20, generator=generator)][:, torch.randperm(6, generator=generator)]
    assert loss(moved).item() == pytest.approx(loss(share).item(), abs=1e-6)
