"""Cuts of rank are the best there are, say what they lost, and never need the dense update."""

import pytest
import torch

from pmemx.core.block import LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.core.low_rank import check_rank, energy, stacked, thin, truncate


def update(rank: int, *, seed: int = 0, scale: float = 1.5) -> LoraFactors:
    generator = torch.Generator().manual_seed(seed)
    return LoraFactors(
        torch.randn(rank, 30, generator=generator) * 0.3, torch.randn(20, rank, generator=generator) * 0.3, scale
    )


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_a_thin_cut_is_the_truncated_svd(rank):
    one = update(8)
    U, S, Vh = torch.linalg.svd(one.delta().double(), full_matrices=False)
    cut = thin(one, rank)
    best = (U[:, :rank] * S[:rank]) @ Vh[:rank]
    assert cut.factors.rank == rank
    assert (cut.factors.delta() - best).abs().max() < 1e-6
    assert cut.lost / cut.total == pytest.approx(float(S[rank:].square().sum() / S.square().sum()), rel=1e-5)
    assert cut.total == pytest.approx(float(one.delta().square().sum()), rel=1e-5)


def test_thin_and_dense_cuts_agree():
    one, dense = thin(update(8), 3), truncate(update(8).delta(), 3)
    assert (one.factors.delta() - dense.factors.delta()).abs().max() < 1e-6
    assert one.lost / one.total == pytest.approx(dense.lost / dense.total, rel=1e-5)


def test_what_has_the_rank_already_is_left_as_it_is():
    one = update(4)
    cut = thin(one, 4)
    assert cut.factors is one and cut.lost == 0.0
    assert cut.total == pytest.approx(energy(one)) == pytest.approx(float(one.delta().square().sum()), rel=1e-5)


def test_a_share_keeps_the_least_rank_that_reaches_it():
    S = torch.tensor([3.0, 2.0, 1.0])  # energies 9, 4, 1 of 14
    one = LoraFactors(torch.eye(3, 5), torch.eye(6, 3) * S, 1.0)
    assert [thin(one, share).factors.rank for share in (0.5, 9 / 14, 0.65, 13 / 14, 0.95, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert thin(one, 0.65).lost / 14 == pytest.approx(1 / 14)


def test_the_whole_share_is_the_numerical_rank():
    one = update(3)
    twice = stacked([one, one], [1.0, 0.5])
    assert twice.rank == 6
    cut = thin(twice, 1.0)
    assert cut.factors.rank == 3
    assert (cut.factors.delta() - 1.5 * one.delta()).abs().max() < 1e-6


def test_stacking_adds_updates_of_any_rank_and_scale():
    parts = [update(rank, seed=rank, scale=0.5 * rank) for rank in (1, 2, 5)]
    whole = stacked(parts, [1.0, -2.0, 0.5])
    assert whole.rank == 8
    assert (whole.delta() - (parts[0].delta() - 2 * parts[1].delta() + 0.5 * parts[2].delta())).abs().max() < 2e-6


def test_an_update_of_nothing_keeps_one_rank_of_nothing():
    nothing = LoraFactors(torch.zeros(4, 30), torch.zeros(20, 4), 1.0)
    for cut in (thin(nothing, 2), thin(nothing, 0.9), truncate(nothing.delta(), 2)):
        assert cut.factors.rank == 1 and not cut.factors.delta().any() and cut.lost == cut.total == 0.0


@pytest.mark.parametrize("rank", [0, -1, 0.0, 1.5, float("nan"), True])
def test_a_rank_that_means_nothing_is_refused(rank):
    with pytest.raises(ConfigError, match="rank"):
        check_rank(rank)
