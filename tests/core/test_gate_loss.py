"""The losses of a gate: by hand, and against transformers' mixtures of experts."""

import math

import numpy as np
import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.models.switch_transformers.modeling_switch_transformers import router_z_loss_func

from pmemx.core.gate import NEVER
from pmemx.core.gate_loss import (
    balance_loss,
    entropy_loss,
    importance_loss,
    localised_balance_loss,
    mole_balance_loss,
    mutual_information_loss,
    prediction_entropy_loss,
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


@pytest.mark.parametrize(
    "loss", [balance_loss, importance_loss, entropy_loss, mutual_information_loss, mole_balance_loss]
)
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


def test_mole_balance_by_hand():
    share = torch.tensor([[0.0, 0.5, 0.5], [0.5, 0.25, 0.25]])  # means of the experts: 3/8 and 3/8
    assert mole_balance_loss(share).item() == pytest.approx(-2 * math.log(3 / 8))
    assert mole_balance_loss(torch.tensor([[0.0, 0.9, 0.1]])).item() == pytest.approx(-math.log(0.09))


@pytest.mark.parametrize("experts", [1, 8, 16])
def test_mole_balance_equals_the_papers_product(experts):
    scores = random_scores(30, experts + 1)
    weights = np.exp(scores.double().numpy())
    weights /= weights.sum(axis=1, keepdims=True)
    product = 1.0
    for expert in range(1, experts + 1):
        product *= weights[:, expert].mean()
    assert mole_balance_loss(scores.softmax(dim=-1)).item() == pytest.approx(-np.log(product), rel=1e-5)


def test_mole_balance_is_least_when_balanced_and_no_expert_gives_way():
    balanced = torch.nn.functional.pad(torch.full((3, 8), 1 / 8), (1, 0))
    assert mole_balance_loss(balanced).item() == pytest.approx(8 * math.log(8))
    assert mole_balance_loss(torch.full((3, 9), 1 / 9)).item() == pytest.approx(8 * math.log(9))
    for seed in range(5):
        scores = torch.randn(1, 8, generator=torch.Generator().manual_seed(seed))
        assert mole_balance_loss(torch.nn.functional.pad(scores.softmax(dim=-1), (1, 0))) > 8 * math.log(8)


def test_mole_balance_gives_no_gradient_to_an_expert_that_is_never_allowed_and_counts_it_as_a_constant():
    scores = random_scores(6, 5)
    alone = mole_balance_loss(scores[:, :4].softmax(dim=-1))
    scores[:, 4] = NEVER
    scores.requires_grad_()
    found = mole_balance_loss(scores.softmax(dim=-1))
    found.backward()
    assert found.item() == pytest.approx(alone.item() - math.log(torch.finfo(torch.float32).tiny), rel=1e-6)
    assert scores.grad is not None and scores.grad.isfinite().all()
    assert not scores.grad[:, 4].any() and scores.grad[:, :4].any()


def test_mole_balance_brings_a_nearly_forgotten_expert_back():
    scores = torch.zeros(4, 3)
    scores[:, 2] = -60.0
    scores.requires_grad_()
    mole_balance_loss(scores.softmax(dim=-1)).backward()
    # d(-log P)/d score = -(1 - P) / decisions of the expert itself
    assert torch.allclose(scores.grad[:, 2], torch.tensor(-1 / 4), atol=1e-5)


def own(choice: torch.Tensor, experts: int) -> torch.Tensor:
    """Every expert is its own type; a row of choice 0 is of none."""
    return choice[:, None] == torch.arange(1, experts + 1)


def test_localised_balance_by_hand():
    importance = torch.tensor([[3.0, 1.0], [2.0, 2.0]])
    # delta 1/2, rows of expert 2 and of none: Z = [[1.5, 1.5], [1, 1]], mean 5/4, variance 1/16
    found = localised_balance_loss(importance, own(torch.tensor([2, 0]), 2), 0.5)
    assert found.item() == pytest.approx((1 / 16) / (25 / 16))


@pytest.mark.parametrize("delta", [-0.5, 0.0, 0.1, 0.9])
def test_localised_balance_equals_a_loop_in_numpy(delta):
    shares, choice = random_scores(6 * 7, 8).softmax(dim=-1).view(6, 7, 8), torch.tensor([1, 8, 3, 0, 3, 5])
    weighed = np.zeros((6, 8))
    for row in range(6):
        for expert in range(8):
            factor = 1 + delta if choice[row] == expert + 1 else 1 - delta
            weighed[row, expert] = factor * shares[row, :, expert].double().sum().item()
    found = localised_balance_loss(shares.sum(dim=1), own(choice, 8), delta)
    assert found.item() == pytest.approx(weighed.var() / weighed.mean() ** 2, rel=1e-4)


def test_localised_balance_without_delta_is_importance_of_every_row():
    importance = random_scores(5, 8).exp()
    found = localised_balance_loss(importance, own(torch.tensor([1, 2, 3, 0, 5]), 8), 0.0)
    assert found.item() == pytest.approx(importance_loss(importance.view(1, -1)).item(), rel=1e-5)


@pytest.mark.parametrize("delta", [0.5, -0.5])
def test_localised_balance_is_least_where_a_rows_own_expert_has_a_share_by_the_sign_of_delta(delta):
    """(1 - delta) / (1 + delta) of each other expert's share: less than theirs as published, more with a negative delta."""
    choice, scores = torch.tensor([1, 2, 3, 4]), torch.zeros(4, 4, requires_grad=True)
    optimizer = torch.optim.Adam([scores], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        loss = localised_balance_loss(scores.softmax(dim=-1) * 10, own(choice, 4), delta)
        loss.backward()
        optimizer.step()
    share = scores.detach().softmax(dim=-1)
    ratio = (1 - delta) / (1 + delta)
    expected = torch.full((4, 4), 1 / (3 + ratio)).fill_diagonal_(ratio / (3 + ratio))
    assert torch.allclose(share, expected, atol=1e-3) and loss.item() < 1e-5


def test_localised_balance_takes_groups_of_experts_as_the_papers_code_does():
    """Rows of type 1 belong to the first half of the experts, as in the authors' code; numpy estimates no variance."""
    importance, kind = random_scores(5, 8).exp(), torch.tensor([1, 0, 0, 1, 1])
    halves = torch.cat([(kind == 1)[:, None].expand(5, 4), (kind == 0)[:, None].expand(5, 4)], dim=1)
    weighed = importance.double().numpy() * np.where(halves.numpy(), 1.3, 0.7)
    expected = weighed.var() / weighed.mean() ** 2
    assert localised_balance_loss(importance, halves, 0.3).item() == pytest.approx(expected, rel=1e-5)


def test_localised_balance_is_finite_where_no_expert_has_any_share():
    for importance in (torch.zeros(3, 4), torch.full((3, 4), 1e-25), torch.eye(4)[:3]):
        importance.requires_grad_()
        found = localised_balance_loss(importance, own(torch.tensor([1, 2, 0]), 4), 0.1)
        found.backward()
        assert found.isfinite() and importance.grad is not None and importance.grad.isfinite().all()


def test_prediction_entropy_by_hand():
    logits = torch.tensor([[[0.0, 0.0], [3.0, 3.0], [9.0, -9.0]], [[0.25, 0.75], [0.5, 0.5], [0.1, 0.9]]])
    logits[1] = logits[1].log()
    prompt = torch.tensor([[True, False, False], [True, False, False]])
    quarter = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert prediction_entropy_loss(logits, prompt).item() == pytest.approx((math.log(2) + quarter) / 2)
    assert prediction_entropy_loss(logits, ~prompt & False).item() == 0.0


def test_prediction_entropy_equals_numpy():
    logits, prompt = random_scores(4 * 6, 29).view(4, 6, 29), torch.arange(6) < torch.tensor([[2], [5], [0], [6]])
    found = []
    for row in range(4):
        for token in range(6):
            if prompt[row, token]:
                p = np.exp(logits[row, token].double().numpy())
                p /= p.sum()
                found.append(-(p * np.log(p)).sum())
    assert len(found) == 13
    assert prediction_entropy_loss(logits, prompt).item() == pytest.approx(np.mean(found), rel=1e-6)


def test_prediction_entropy_is_finite_where_words_are_impossible_or_sure():
    logits = random_scores(6, 11).view(2, 3, 11)
    logits[0, 0, 4:] = -math.inf
    logits[1, 1] = torch.eye(11)[2] * 1e4
    logits.requires_grad_()
    found = prediction_entropy_loss(logits, torch.ones(2, 3, dtype=torch.bool))
    found.backward()
    assert found.isfinite() and logits.grad is not None and logits.grad.isfinite().all() and logits.grad.any()
