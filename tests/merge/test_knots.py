"""KnOTS without dense matrices against the SVD of the dense concatenation."""

import torch
from weighted_experts import furthest, parents, true_deltas

from pmemx.core.block import LoraFactors
from pmemx.core.merge import Experts, Parent
from pmemx.merge.dare import Dare
from pmemx.merge.deltas import Deltas
from pmemx.merge.elect import Elect
from pmemx.merge.entrywise import EntrywiseMerge
from pmemx.merge.knots import Knots
from pmemx.merge.magnitude import Magnitude
from pmemx.merge.weighted_sum import WeightedSum


def experts_of(parents: list[Parent]) -> Experts:
    return Experts(tuple(p.block.factors for p in parents), tuple(p.weight for p in parents))


def dense(experts: Experts, site: str) -> tuple[torch.Tensor, torch.Tensor]:
    """U and the aligned updates of the definition, in float64."""
    deltas = [update.delta().double() for _, update, _ in experts.at(site)]
    U, S, Vh = torch.linalg.svd(torch.cat(deltas, dim=1), full_matrices=False)
    kept = S > 1e-5
    return U[:, kept], torch.stack((S[kept, None] * Vh[kept]).split(deltas[0].shape[1], dim=1))


def test_aligned_updates_are_those_of_the_dense_decomposition():
    experts = experts_of(parents())
    for site in experts.sites:
        (stack,) = Knots().view(experts, site).stacks
        _, aligned = dense(experts, site)
        assert stack.tensors.shape == aligned.shape
        # Singular vectors have no sign of their own: each row is compared up to one sign for all experts.
        sign = (stack.tensors * aligned).sum(dim=(0, 2)).sign()
        assert (stack.tensors - sign[:, None] * aligned).abs().max() < 2e-6


def test_knots_ties_is_that_of_the_dense_decomposition():
    experts = parents()
    merge = EntrywiseMerge(combine=Elect(), prune=Magnitude(density=0.3), space=Knots())
    merged = merge(experts, name="m", generator=torch.Generator())
    reference = {}
    for site in experts_of(experts).sites:
        U, aligned = dense(experts_of(experts), site)
        (stack,) = Knots().view(experts_of(experts), site).stacks
        pruned = Magnitude(density=0.3).pruner(lambda: iter(()), torch.Generator())(
            type(stack)(stack.experts, aligned, stack.weights)
        )
        reference[site] = U @ Elect()(pruned, stack.weights)
    assert furthest(merged.block, reference) < 2e-6
    assert merged.lost_energy == 0.0


def test_a_plain_sum_in_the_shared_basis_is_the_plain_sum():
    experts = parents()
    merge = EntrywiseMerge(combine=WeightedSum(), prune=None, space=Knots())
    merged = merge(experts, name="m", generator=torch.Generator())
    assert furthest(merged.block, true_deltas(experts)) < 2e-6


def test_random_drops_differ_from_those_of_deltas_but_keep_the_mean():
    experts = parents()
    mean = {}
    merge = EntrywiseMerge(combine=WeightedSum(), prune=Dare(density=0.8), space=Knots())
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        for site, update in merge(experts, name="m", generator=generator).block.factors.items():
            mean[site] = mean.get(site, 0) + update.delta() / 60
    error = sum((mean[s] - d).square().sum() for s, d in true_deltas(experts).items())
    assert error / sum(d.square().sum() for d in true_deltas(experts).values()) < 0.02


def test_the_site_is_never_dense():
    # 20,000 by 20,000 would be 1.6 GB in float32.
    generator = torch.Generator().manual_seed(0)
    factors = tuple(
        {
            "a": LoraFactors(
                torch.randn(2, 20_000, generator=generator), torch.randn(20_000, 2, generator=generator), 1.0
            )
        }
        for _ in range(3)
    )
    cuts = EntrywiseMerge(combine=Elect(), prune=None, space=Knots()).merged_sites(
        Experts(factors, (1.0,) * 3), torch.Generator()
    )
    assert cuts["a"].factors.rank == 6


def test_deltas_and_knots_disagree_for_entrywise_methods():
    experts = parents()
    one, other = (
        EntrywiseMerge(combine=Elect(), prune=Magnitude(density=0.3), space=space)(
            experts, name="m", generator=torch.Generator()
        )
        for space in (Deltas(), Knots())
    )
    assert furthest(one.block, {s: f.delta() for s, f in other.block.factors.items()}) > 0.01
