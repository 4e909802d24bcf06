"""TSV-M without dense matrices against the paper's formula on dense ones; what is equal, orthogonal or too much."""

import math

import pytest
import torch
from weighted_experts import furthest, parents, true_deltas

from pmemx.core.block import LoraFactors
from pmemx.core.low_rank import orthonormal
from pmemx.core.merge import Experts, Parent
from pmemx.merge.tsv import TaskSingularVectors

# Wide enough for 20 directions of eight experts of ranks 1 to 4.
WIDE = {"a": (40, 32), "b": (24, 56), "c": (30, 30)}
WEIGHTS = (1, 0.5, 2, -0.25, 1, 0.7, 1.3, 0.1)


def merged(experts: list[Parent], **settings):
    return TaskSingularVectors(**settings)(experts, name="m", generator=torch.Generator())


def one_site(*updates: LoraFactors) -> LoraFactors:
    cuts = TaskSingularVectors().merged_sites(
        Experts(tuple({"a": update} for update in updates), (1.0,) * len(updates)), torch.Generator()
    )
    return cuts["a"].factors


def dense(experts: list[Parent], site: str) -> torch.Tensor:
    """Algorithm 1 of the paper with k = the expert's rank: SVDs of dense updates, and the polar factors by another SVD."""
    U, S, V = [], [], []
    for parent in experts:
        if site in parent.block.factors:
            update = parent.block.factors[site]
            u, s, vh = torch.linalg.svd(parent.weight * update.scale * update.B.double() @ update.A.double())
            U.append(u[:, : update.rank])
            S.append(s[: update.rank])
            V.append(vh[: update.rank])
    P, _, Qh = torch.linalg.svd(torch.cat(U, dim=1), full_matrices=False)
    R, _, Th = torch.linalg.svd(torch.cat(V), full_matrices=False)
    return P @ Qh @ torch.diag(torch.cat(S)) @ R @ Th


# In the narrow sites the experts have more directions than the site is wide.
@pytest.mark.parametrize("widths", [WIDE, {"a": (24, 16), "b": (16, 12), "c": (10, 10)}], ids=["wide", "narrow"])
def test_the_merge_is_that_of_the_dense_formula(widths):
    experts = parents(weights=WEIGHTS, widths=widths)
    found = merged(experts)
    assert furthest(found.block, {site: dense(experts, site) for site in widths}) < 5e-6
    assert found.lost_energy == 0.0


def test_the_result_has_the_singular_values_of_all_experts():
    experts = parents(weights=WEIGHTS, widths=WIDE)
    for site, update in merged(experts).block.factors.items():
        own = [
            torch.linalg.svdvals(parent.weight * parent.block.factors[site].delta())[: parent.block.factors[site].rank]
            for parent in experts
            if site in parent.block.factors
        ]
        expected = torch.cat(own).sort(descending=True).values
        assert (torch.linalg.svdvals(update.delta())[: len(expected)] - expected).abs().max() < 1e-5


def test_experts_with_nothing_in_common_are_summed():
    factors = []
    for number in range(8):
        generator = torch.Generator().manual_seed(number)
        A, B = torch.zeros(2, 24), torch.zeros(32, 2)
        A[:, 3 * number : 3 * number + 3] = torch.randn(2, 3, generator=generator)
        B[4 * number : 4 * number + 4] = torch.randn(4, 2, generator=generator)
        factors.append(LoraFactors(A, B, 0.5 + number))
    assert (one_site(*factors).delta() - sum(update.delta() for update in factors)).abs().max() < 5e-6


def test_two_directions_move_apart_evenly_by_hand():
    # At 0 and 60 degrees; the nearest orthonormal pair lies at -15 and 75 degrees.
    def at(degrees: float) -> torch.Tensor:
        return torch.tensor([[math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]])

    found = one_site(LoraFactors(at(0), at(0).T, 2.0), LoraFactors(at(60), at(60).T, 1.0))
    assert (found.delta() - (2 * at(-15).T @ at(-15) + at(75).T @ at(75))).abs().max() < 1e-6


def test_experts_of_equal_directions_are_averaged():
    expert = parents(4, weights=[1.0])[0].block.factors["a"]
    # Rounded in float32, the directions of the second are no longer exactly those of the first.
    other = LoraFactors(expert.A / 3, expert.B * 0.9, expert.scale)
    found = one_site(expert, other)
    assert (found.delta() - (1 + 0.3) / 2 * expert.delta()).abs().max() < 2e-6


def test_an_expert_of_zero_has_no_say():
    experts = [parent.block.factors["a"] for parent in parents()]
    nothing = LoraFactors(torch.randn(3, 24, generator=torch.Generator().manual_seed(0)), torch.zeros(16, 3), 1.0)
    assert (one_site(*experts).delta() - one_site(nothing, *experts).delta()).abs().max() < 1e-6
    assert not one_site(nothing, nothing).delta().any()


def test_a_smaller_rank_tells_what_it_lost():
    experts = parents(weights=WEIGHTS, widths=WIDE)
    whole, cut = merged(experts, scaling=0.5), merged(experts, scaling=0.5, rank="largest")
    lost = total = 0.0
    for site, update in cut.block.factors.items():
        S = torch.linalg.svdvals(whole.block.factors[site].delta()).square()
        assert update.rank == 4
        lost, total = lost + float(S[4:].sum()), total + float(S.sum())
    assert cut.lost_energy == pytest.approx(lost / total, rel=1e-4)
    assert furthest(whole.block, {s: 0.5 * f.delta() for s, f in merged(experts).block.factors.items()}) < 1e-6


def test_it_is_not_the_sum():
    experts = parents()
    assert furthest(merged(experts).block, true_deltas(experts)) > 0.1


def test_the_site_is_never_dense():
    # 20,000 by 20,000 would be 1.6 GB in float32.
    generator = torch.Generator().manual_seed(0)
    updates = [
        LoraFactors(torch.randn(2, 20_000, generator=generator), torch.randn(20_000, 2, generator=generator), 1.0)
        for _ in range(3)
    ]
    assert one_site(*updates).rank == 6


@pytest.mark.parametrize(("width", "columns"), [(30, 8), (6, 9)])
def test_the_nearest_orthonormal_matrix_is_the_polar_factor(width, columns):
    X = torch.randn(width, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = orthonormal(X, torch.float32)
    # X = found H with H the positive root of X^T X, which scipy's polar decomposition is as well.
    values, vectors = torch.linalg.eigh(X.T @ X)
    root = vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T
    assert (found @ root - X).abs().max() < 1e-7
    gram = found.T @ found if width >= columns else found @ found.T
    assert (gram - torch.eye(min(width, columns))).abs().max() < 1e-12
