"""Laws of every selection in conf/select.

A selection with a seed draws: what is said of its weights under a permutation of experts holds for the mean over seeds.
"""

import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from pmemx.stage.build import build

FILES = sorted((Path(__file__).parents[2] / "conf" / "select").glob("*.yaml"))


def made(file):
    return build(OmegaConf.to_container(OmegaConf.load(file)))


def draws(select) -> bool:
    return "seed" in {field.name for field in fields(select)}


def random_scores(seed: int, *shape: int) -> torch.Tensor:
    """On a grid of 1/64, so that adding a whole number changes no difference between scores."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 64).round() / 64


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
class TestSelect:
    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 2**16), experts=st.integers(1, 12), scale=st.sampled_from([0.1, 1.0, 30.0]))
    def test_weights_are_shares_and_indices_are_experts(self, file, seed, experts, scale):
        select = made(file)
        routing = select(random_scores(seed, 3, 4, experts + 1) * scale)
        assert routing.num_experts == experts
        assert (routing.index >= 0).all() and (routing.index < experts).all()
        if select.gives_shares:
            assert (routing.weight >= 0).all() and (routing.weight.sum(dim=-1) <= 1 + 1e-5).all()
            assert (routing.dense() <= 1 + 1e-5).all()

    @pytest.mark.parametrize("far", [-1e9, -math.inf])
    def test_a_sure_choice_has_all_the_weight(self, file, far):
        select, scores = made(file), torch.full((1, 1, 9), far)
        # What is no share is the score itself, and there all the weight is a score of 1.
        scores[..., 4] = 0.0 if select.gives_shares else 1.0
        assert torch.equal(select(scores).dense(), torch.eye(8)[3][None, None])

    @pytest.mark.parametrize("far", [-1e9, -math.inf])
    def test_a_sure_none_gives_no_expert_any_weight(self, file, far):
        scores = torch.full((1, 1, 9), far)
        scores[..., 0] = 0.0
        assert not made(file)(scores).dense().any()

    def test_permuting_experts_permutes_weights(self, file):
        select, scores = made(file), random_scores(0, 2, 3, 9)
        order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
        moved = torch.cat([scores[..., :1], scores[..., 1:][..., order]], dim=-1)
        if draws(select):
            many = [replace(select, seed=seed) for seed in range(400)]
            found, expected = (torch.stack([s(x).dense() for s in many]).mean(dim=0) for x in (moved, scores))
            # Five standard errors of the difference of two rates over 400 seeds each.
            assert torch.allclose(found, expected[..., order], atol=5 * 0.5 * math.sqrt(2 / 400))
        else:
            assert torch.allclose(select(moved).dense(), select(scores).dense()[..., order])

    def test_the_same_scores_give_the_same_routing(self, file):
        select, scores = made(file), random_scores(0, 4, 5, 9)
        first = select(scores).dense()
        select(random_scores(1, 2, 3, 9))
        assert torch.equal(select(scores).dense(), first)
        if select.independent:
            assert torch.equal(made(file)(scores[2:, 1:4]).dense(), first[2:, 1:4])

    def test_a_constant_added_to_all_scores_changes_nothing(self, file):
        select, scores = made(file), random_scores(0, 4, 5, 9)
        if not select.gives_shares:
            pytest.skip("weights are the scores, and move with them")
        assert torch.allclose(select(scores + 7).dense(), select(scores).dense(), atol=1e-6)

    def test_a_score_of_minus_infinity_is_never_chosen(self, file):
        scores = random_scores(0, 4, 5, 9)
        away = torch.rand(scores.shape, generator=torch.Generator().manual_seed(1)) < 0.6
        dense = made(file)(scores.masked_fill(away, -math.inf)).dense()
        assert dense.isfinite().all()
        assert not dense[away[..., 1:]].any()

    def test_a_decision_that_may_choose_nothing_goes_to_no_expert(self, file):
        scores = torch.full((1, 2, 9), -math.inf)
        scores[:, 1] = random_scores(0, 1, 9)
        dense = made(file)(scores).dense()
        assert not dense[:, 0].any()
        assert torch.equal(dense[:, 1:], made(file)(scores[:, 1:]).dense())

    @pytest.mark.parametrize("scale", [1.0, 1e4])
    def test_gradients_are_finite(self, file, scale):
        scores = random_scores(0, 4, 5, 9) * scale
        away = torch.rand(scores.shape, generator=torch.Generator().manual_seed(1)) < 0.4
        scores = scores.masked_fill(away, -math.inf)
        scores[0, 0] = -math.inf
        scores.requires_grad_()
        (made(file)(scores).dense() * random_scores(2, 4, 5, 8)).sum().backward()
        assert scores.grad is not None and scores.grad.isfinite().all()
        assert not scores.grad[away].any()
