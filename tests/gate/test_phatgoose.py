"""PHATGOOSE trains a sigmoid for each expert alone and lets the vectors compete afterwards."""

import torch
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.gate.phatgoose import PhatgooseGate

SITE = "layers.0.up_proj"


def gate_of(vectors: torch.Tensor) -> PhatgooseGate:
    gate = PhatgooseGate(BankShape(tuple(f"e{i}" for i in range(len(vectors))), {SITE: vectors.shape[1]}, 8))
    gate.vectors[0].data.copy_(vectors)
    return gate


def test_is_half_open_before_training():
    x = torch.randn(2, 5, 6)
    alone = gate_of(torch.zeros(3, 6)).train()(SITE, x)[..., [0, 2]].softmax(dim=-1)
    assert torch.equal(alone[..., 1], torch.full((2, 5), 0.5))


def test_in_training_the_softmax_against_no_expert_is_the_sigmoid_of_the_paper():
    vectors, x = torch.randn(3, 6), torch.randn(2, 5, 6)
    scores = gate_of(vectors).train()(SITE, x)
    for expert in range(3):
        alone = scores[..., [0, expert + 1]].softmax(dim=-1)[..., 1]
        assert torch.allclose(alone, torch.sigmoid(x @ vectors[expert]), atol=1e-6)


def test_an_expert_trained_alone_moves_no_other_vector():
    gate = gate_of(torch.zeros(3, 6)).train()
    gate(SITE, torch.randn(2, 5, 6))[..., [0, 2]].softmax(dim=-1)[..., 1].sum().backward()
    grad = gate.vectors[0].grad
    assert grad[1].abs().sum() > 0 and grad[[0, 2]].eq(0).all()


def test_in_use_scores_are_standardised_on_both_sides():
    vectors, x = torch.randn(3, 6), torch.randn(2, 5, 6)
    scores = gate_of(vectors).eval()(SITE, x)

    def standard(v: torch.Tensor) -> torch.Tensor:
        return (v - v.mean(dim=-1, keepdim=True)) / v.std(dim=-1, keepdim=True, unbiased=False)

    assert torch.allclose(scores[..., 1:], standard(x) @ standard(vectors).T / 6**0.5, atol=1e-4)
    assert torch.allclose(scores, gate_of(20 * vectors).eval()(SITE, 3 * x), atol=1e-4)
    assert (F.softmax(scores, dim=-1)[..., 0] == 0).all()
