"""Model breadcrumbs against its definition, entry by entry."""

import pytest
import torch
from weighted_experts import furthest, parents

from pmemx.core.errors import ConfigError
from pmemx.merge.breadcrumbs import Breadcrumbs
from pmemx.merge.deltas import Deltas
from pmemx.merge.entrywise import EntrywiseMerge
from pmemx.merge.magnitude import Magnitude
from pmemx.merge.space import Stack
from pmemx.merge.weighted_sum import WeightedSum


def pruned(prune: Breadcrumbs | Magnitude, tensors: torch.Tensor) -> torch.Tensor:
    stack = Stack(tuple(range(len(tensors))), tensors, torch.ones(len(tensors)))
    return prune.pruner(lambda: iter(()), torch.Generator())(stack)


def random_tensors() -> torch.Tensor:
    return torch.randn(8, 10, 12, generator=torch.Generator().manual_seed(0)) ** 3


def test_outliers_and_the_smallest_are_dropped():
    tensors = torch.tensor([[[9.0, -1.0, 5.0, -4.0, 3.0], [-8.0, 7.0, 0.1, 2.0, -6.0]]])
    # Of ten, the two largest (9, -8) go, and of the others the four largest stay.
    found = pruned(Breadcrumbs(density=0.4, gamma=0.2), tensors)
    assert found.tolist() == [[[0.0, 0.0, 5.0, -4.0, 0.0], [0.0, 7.0, 0.0, 0.0, -6.0]]]


@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.5])
def test_density_1_keeps_everything_whatever_gamma_is(gamma):
    tensors = random_tensors()
    assert torch.equal(pruned(Breadcrumbs(density=1.0, gamma=gamma), tensors), tensors)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9, 0.995])
@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.1, 0.6])
def test_density_is_kept_to_and_gamma_gives_way(density, gamma):
    found = pruned(Breadcrumbs(density=density, gamma=gamma), random_tensors())
    assert (found != 0).sum(dim=(1, 2)).tolist() == [int(density * 120)] * 8


@pytest.mark.parametrize("gamma", [0.0, 0.005])
def test_without_outliers_it_is_a_trim_by_magnitude(gamma):
    tensors = random_tensors()
    found = pruned(Breadcrumbs(density=0.3, gamma=gamma), tensors)
    assert torch.equal(found, pruned(Magnitude(density=0.3), tensors))


def test_equals_are_kept_by_place_up_to_the_number():
    found = pruned(Breadcrumbs(density=0.5, gamma=0.25), torch.ones(1, 1, 4))
    assert found.tolist() == [[[0.0, 1.0, 1.0, 0.0]]]


def test_a_merge_is_that_of_the_definition_entry_by_entry():
    density, gamma, experts = 0.3, 0.1, parents()
    merge = EntrywiseMerge(
        combine=WeightedSum(), prune=Breadcrumbs(density=density, gamma=gamma), space=Deltas(), scaling=0.5, rank=1.0
    )
    merged = merge(experts, name="m", generator=torch.Generator())
    reference = {}
    for parent in experts:
        for site, update in parent.block.factors.items():
            delta = update.delta()
            ascending = sorted(abs(entry) for row in delta.tolist() for entry in row)
            top, keep = int(gamma * len(ascending)), int(density * len(ascending))
            inside = set(ascending[len(ascending) - top - keep : len(ascending) - top])
            sparse = [[entry if abs(entry) in inside else 0.0 for entry in row] for row in delta.tolist()]
            reference[site] = reference.get(site, 0) + 0.5 * parent.weight * torch.tensor(sparse)
    assert furthest(merged.block, reference) < 2e-6


@pytest.mark.parametrize("gamma", [-0.1, 1.0, float("nan")])
def test_a_gamma_that_is_no_share_is_refused(gamma):
    with pytest.raises(ConfigError, match=r"gamma .* is no share of largest entries"):
        Breadcrumbs(gamma=gamma)


@pytest.mark.parametrize("density", [0.0, 1.1, float("nan")])
def test_a_density_that_is_no_share_is_refused(density):
    with pytest.raises(ConfigError, match="density"):
        Breadcrumbs(density=density)


def test_a_density_that_keeps_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"density 0\.2 keeps none of 4 entries; give at least 0\.25"):
        pruned(Breadcrumbs(density=0.2), torch.ones(1, 1, 4))
