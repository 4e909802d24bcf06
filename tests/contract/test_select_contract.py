"""Laws of every selection in conf/select."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from pmemx.stage.build import build

FILES = sorted((Path(__file__).parents[2] / "conf" / "select").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
class TestSelect:
    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 2**16), experts=st.integers(1, 12), scale=st.sampled_from([0.1, 1.0, 30.0]))
    def test_weights_are_shares_and_indices_are_experts(self, file, seed, experts, scale):
        select = build(OmegaConf.to_container(OmegaConf.load(file)))
        scores = torch.randn(3, 4, experts + 1, generator=torch.Generator().manual_seed(seed)) * scale
        routing = select(scores)
        assert routing.num_experts == experts
        assert (routing.weight >= 0).all() and (routing.weight.sum(dim=-1) <= 1 + 1e-5).all()
        assert (routing.index >= 0).all() and (routing.index < experts).all()
        assert (routing.dense() <= 1 + 1e-5).all()

    def test_a_sure_choice_has_all_the_weight(self, file):
        select = build(OmegaConf.to_container(OmegaConf.load(file)))
        scores = torch.full((1, 1, 9), -1e9)
        scores[..., 4] = 0.0
        assert torch.equal(select(scores).dense(), torch.eye(8)[3][None, None])

    def test_a_sure_none_gives_no_expert_any_weight(self, file):
        select = build(OmegaConf.to_container(OmegaConf.load(file)))
        scores = torch.full((1, 1, 9), -1e9)
        scores[..., 0] = 0.0
        assert not select(scores).dense().any()

    def test_permuting_experts_permutes_weights(self, file):
        select = build(OmegaConf.to_container(OmegaConf.load(file)))
        scores = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0))
        order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
        moved = torch.cat([scores[..., :1], scores[..., 1:][..., order]], dim=-1)
        assert torch.allclose(select(moved).dense(), select(scores).dense()[..., order])
