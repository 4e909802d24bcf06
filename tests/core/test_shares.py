"""Shares: the one place of temperature and normalisation."""

import math

import pytest
import torch

from pmemx.core.errors import ConfigError
from pmemx.core.shares import check_k_fits, check_temperature, renormalised, shares


def test_shares_are_a_softmax_of_scores_over_temperature():
    scores = torch.tensor([0.0, math.log(4.0)])
    assert shares(scores).tolist() == pytest.approx([0.2, 0.8])
    assert shares(scores, 2.0).tolist() == pytest.approx([1 / 3, 2 / 3])


def test_half_precision_scores_are_shared_in_float32():
    assert shares(torch.zeros(3, dtype=torch.bfloat16)).tolist() == pytest.approx([1 / 3] * 3, abs=1e-7)


def test_nothing_to_choose_is_no_expert_with_a_gradient_of_zero():
    scores = torch.full((2, 3), -math.inf)
    scores[1] = 0.0
    scores.requires_grad_()
    found = shares(scores)
    assert found[0].tolist() == [1.0, 0.0, 0.0] and found[1].tolist() == pytest.approx([1 / 3] * 3)
    found[:, 1].sum().backward()
    assert scores.grad is not None and not scores.grad[0].any() and scores.grad[1].any()


def test_a_score_that_is_not_a_number_is_not_hidden():
    assert shares(torch.tensor([0.0, math.nan, 1.0])).isnan().all()


def test_renormalising_leaves_nothing_where_nothing_is():
    assert renormalised(torch.tensor([[0.1, 0.3], [0.0, 0.0]])).tolist() == [pytest.approx([0.25, 0.75]), [0.0, 0.0]]


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_that_is_no_temperature_is_refused(temperature):
    with pytest.raises(ConfigError, match=f"temperature = {temperature} must be positive"):
        check_temperature(temperature)


def test_more_choices_than_experts_are_refused_in_words():
    check_k_fits(3, 3)
    with pytest.raises(ConfigError, match=r"select.k = 4 is larger than the 3 experts of the bank; set select.k=3"):
        check_k_fits(4, 3)
