"""The losses of a gate: by hand, and against transformers' mixture-of-experts."""

import math

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from pmemx.core.errors import ConfigError
from pmemx.lit.gate_module import GateLosses, balance_loss, entropy_loss, mutual_information_loss, z_loss


def test_balance_equals_transformers():
    scores = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    theirs = load_balancing_loss_func((scores,), num_experts=9, top_k=1)
    assert balance_loss(scores.softmax(dim=-1)).item() == pytest.approx(float(theirs), abs=1e-6)


def test_balance_is_one_when_balanced_and_the_number_of_choices_when_collapsed():
    assert balance_loss(torch.eye(8)).item() == pytest.approx(1.0)
    assert balance_loss(torch.eye(8)[[2] * 8]).item() == pytest.approx(8.0)


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


def test_no_loss_at_all_is_refused():
    with pytest.raises(ConfigError, match="weight 0"):
        GateLosses(language_model=0.0, supervision=0.0)
