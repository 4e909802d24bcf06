"""Raw weights are the scores, whatever their sign and sum."""

import math

import torch

from pmemx.core.gate import NEVER
from pmemx.select.raw import Raw


def test_by_hand():
    scores = torch.tensor([[[5.0, -0.5, 2.0, 0.0, NEVER, -math.inf]]])
    routing = Raw()(scores)
    assert routing.num_experts == 5
    assert torch.equal(routing.dense(), torch.tensor([[[-0.5, 2.0, 0.0, 0.0, 0.0]]]))


def test_a_weight_moves_as_its_score_does_and_nothing_else_moves_it():
    scores = torch.randn(2, 3, 9, requires_grad=True)
    Raw()(scores).dense()[..., 2].sum().backward()
    assert torch.equal(scores.grad, torch.eye(9)[3].expand(2, 3, 9))


def test_weights_are_no_shares():
    assert not Raw.gives_shares
