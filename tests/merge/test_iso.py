"""Isotropic merges: equal singular values over the directions that are really there, common ones and experts' own."""

import pytest
import torch
from weighted_experts import furthest, parents, true_deltas

from pmemx.core.block import LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.core.merge import Experts, Merge, Merged, Parent
from pmemx.merge.iso import Iso
from pmemx.merge.iso_cts import IsoCts

WIDE = {"a": (40, 32), "b": (24, 56), "c": (30, 30)}
BOTH = pytest.mark.parametrize("merge", [Iso(), IsoCts()], ids=["iso", "iso_cts"])


def merged(merge: Merge, experts: list[Parent]) -> Merged:
    return merge(experts, name="m", generator=torch.Generator())


def one_site(merge: Merge, *updates: LoraFactors) -> LoraFactors:
    experts = Experts(tuple({"a": update} for update in updates), (1.0,) * len(updates))
    return merge.merged_sites(experts, torch.Generator())["a"].factors


def diagonal(*values: float) -> LoraFactors:
    return LoraFactors(torch.eye(len(values)), torch.diag(torch.tensor(values)), 1.0)


def dense_updates(experts: list[Parent], site: str) -> list[torch.Tensor]:
    return [
        parent.weight * update.scale * update.B.double() @ update.A.double()
        for parent in experts
        if (update := parent.block.factors.get(site)) is not None
    ]


def dense_cts(experts: list[Parent], site: str, common: float) -> torch.Tensor:
    """Algorithm 2 of the paper on dense updates, with the authors' rounding of shares; min(width) is the rank of the sum.

    An expert of a smaller rank than its share gives the directions that it has.
    """
    updates = dense_updates(experts, site)
    U, S, Vh = torch.linalg.svd(sum(updates), full_matrices=False)
    directions = int(torch.linalg.matrix_rank(sum(updates), rtol=1e-6))
    own = round((directions - int(directions * common)) / len(updates)) * len(updates)
    k = directions - own
    us, ss, vs = [U[:, :k]], [S[:k]], [Vh[:k]]
    for update in updates:
        u, s, vh = torch.linalg.svd(update - U[:, :k] @ U[:, :k].T @ update, full_matrices=False)
        each = min(own // len(updates), int((s > 1e-6).sum()))
        us, ss, vs = [*us, u[:, :each]], [*ss, s[:each]], [*vs, vh[:each]]
    P, _, Qh = torch.linalg.svd(torch.cat(us, dim=1), full_matrices=False)
    R, _, Th = torch.linalg.svd(torch.cat(vs), full_matrices=False)
    return torch.cat(ss).mean() * P @ Qh @ R @ Th


class TestIso:
    def test_is_the_dense_formula_over_the_rank_of_the_sum(self):
        experts = parents()
        reference = {}
        for site, total in true_deltas(experts).items():
            U, S, Vh = torch.linalg.svd(total, full_matrices=False)
            rank = int(torch.linalg.matrix_rank(total, rtol=1e-6))
            reference[site] = 1.5 * S[:rank].mean() * U[:, :rank] @ Vh[:rank]
        found = merged(Iso(scaling=1.5), experts)
        assert furthest(found.block, reference) < 5e-6
        assert found.lost_energy < 1e-12

    def test_keeps_the_nuclear_norm_of_the_sum(self):
        experts = parents(widths=WIDE)
        for site, update in merged(Iso(), experts).block.factors.items():
            total = sum(dense_updates(experts, site))
            S = torch.linalg.svdvals(update.delta().double())[: torch.linalg.matrix_rank(total, rtol=1e-6)]
            assert S.sum() == pytest.approx(float(torch.linalg.svdvals(total).sum()), rel=1e-5)
            assert S.max() - S.min() < 1e-5 * S.max()

    def test_by_hand(self):
        found = one_site(Iso(), diagonal(5.0, 0.0, 1.0), diagonal(0.0, 2.0, 0.0))
        assert (found.delta() - 8 / 3 * torch.eye(3)).abs().max() < 1e-6

    def test_a_smaller_rank_is_cut_before_the_values_are_equal(self):
        cut = Iso(rank=2).merged_sites(Experts(({"a": diagonal(5.0, 3.0, 1.0)},), (1.0,)), torch.Generator())["a"]
        assert (cut.factors.delta() - torch.diag(torch.tensor([4.0, 4.0, 0.0]))).abs().max() < 1e-6
        assert (cut.lost, cut.total) == pytest.approx((1.0, 35.0))


class TestIsoCts:
    @pytest.mark.parametrize("common", [0.0, 0.5, 0.8])
    def test_is_the_dense_algorithm(self, common):
        experts = parents(widths=WIDE)
        found = merged(IsoCts(common=common), experts)
        assert furthest(found.block, {site: dense_cts(experts, site, common) for site in WIDE}) < 1e-5

    def test_is_iso_c_where_all_is_common(self):
        experts = parents()
        one, other = merged(IsoCts(common=1.0), experts), merged(Iso(), experts)
        assert furthest(one.block, {s: f.delta().double() for s, f in other.block.factors.items()}) < 2e-6

    def test_is_iso_c_for_one_expert(self):
        experts = parents(4, weights=[1.0])
        one, other = merged(IsoCts(common=0.5), experts), merged(Iso(), experts)
        assert furthest(one.block, {s: f.delta().double() for s, f in other.block.factors.items()}) < 2e-6

    def test_directions_of_experts_that_oppose_each_other_cancel_by_hand(self):
        # The sum is diag(8, 1, 1). Outside its first direction, 3 and -2 are strongest, along the same second axis.
        found = one_site(IsoCts(common=0.34), diagonal(4.0, 3.0, 0.0), diagonal(4.0, -2.0, 1.0))
        assert (found.delta() - torch.diag(torch.tensor([13 / 3, 0.0, 0.0]))).abs().max() < 1e-6

    def test_nothing_is_taken_from_what_the_common_directions_hold_already(self):
        # Two experts of one direction each, both common: no share is left over, and rounding is no direction.
        found = one_site(IsoCts(common=0.5), diagonal(4.0, 0.0), diagonal(0.0, 2.0))
        assert (found.delta() - 3 * torch.eye(2)).abs().max() < 1e-6

    @pytest.mark.parametrize("common", [-0.1, 1.1, float("nan")])
    def test_a_share_that_is_none_is_refused(self, common):
        with pytest.raises(ConfigError, match=r"common = .* is no share of directions; give one in \[0, 1\]"):
            IsoCts(common=common)


@BOTH
def test_directions_that_only_rounding_made_are_left_alone(merge):
    expert = parents(4, weights=[1.0])[0].block.factors["a"]
    other = LoraFactors(expert.A / 3, expert.B * 0.9, expert.scale)
    found = one_site(merge, expert, other)
    U, S, Vh = torch.linalg.svd(expert.delta().double(), full_matrices=False)
    share = (1.3 * S[:4]).mean()
    assert torch.linalg.matrix_rank(found.delta().double(), rtol=1e-5) == 4
    if isinstance(merge, Iso):
        assert (found.delta() - share * U[:, :4] @ Vh[:4]).abs().max() < 1e-5


@BOTH
def test_how_an_expert_is_written_does_not_matter(merge):
    experts = [parent.block.factors["a"] for parent in parents()]
    written = []
    for number, update in enumerate(experts):
        turn = torch.randn(update.rank, update.rank, generator=torch.Generator().manual_seed(number)).double()
        A, B = turn @ update.A.double(), update.B.double() @ torch.linalg.inv(turn)
        written.append(LoraFactors(A.float(), B.float(), update.scale))
    one, other = one_site(merge, *experts).delta(), one_site(merge, *written).delta()
    # The least singular value of the sum is what limits it: the directions of small ones are known less well.
    assert (one - other).abs().max() < 1e-3 * one.abs().max()


@BOTH
def test_nothing_becomes_nothing(merge):
    nothing = LoraFactors(torch.randn(3, 9, generator=torch.Generator().manual_seed(0)), torch.zeros(5, 3), 1.0)
    assert not one_site(merge, nothing, nothing).delta().any()


@BOTH
def test_the_site_is_never_dense(merge):
    # 20,000 by 20,000 would be 1.6 GB in float32.
    generator = torch.Generator().manual_seed(0)
    updates = [
        LoraFactors(torch.randn(2, 20_000, generator=generator), torch.randn(20_000, 2, generator=generator), 1.0)
        for _ in range(3)
    ]
    assert one_site(merge, *updates).rank == 6
