"""Every combination type of PEFT's add_weighted_adapter, site by site; and where PEFT is silently wrong."""

import math
from collections.abc import Sequence

import pytest
import torch
from peft.utils import merge_utils
from weighted_experts import furthest, parents, peft_deltas, true_deltas

from pmemx.core.block import CapabilityBlock
from pmemx.core.merge import Merge, Parent
from pmemx.merge.dare import Dare
from pmemx.merge.deltas import Deltas
from pmemx.merge.elect import Elect
from pmemx.merge.entrywise import EntrywiseMerge, Prune
from pmemx.merge.factors import Factors
from pmemx.merge.linear import Linear
from pmemx.merge.magnitude import Magnitude
from pmemx.merge.weighted_sum import WeightedSum
from tests.rounding import rounding


def assert_near(block: CapabilityBlock, deltas: dict[str, torch.Tensor], experts: Sequence[Parent]) -> None:
    """Equal but for rounding: an entry is a sum over the ranks of all experts."""
    num_terms = sum(next(iter(parent.block.factors.values())).rank for parent in experts)
    assert furthest(block, deltas) <= rounding(max(delta.abs().max() for delta in deltas.values()), num_terms)


def entrywise(prune: Prune | None, combine: Elect | WeightedSum, space: Deltas | Factors) -> EntrywiseMerge:
    return EntrywiseMerge(prune=prune, combine=combine, space=space, rank="largest")


EXACT: dict[str, Merge] = {
    "cat": Linear(rank="sum"),
    "svd": Linear(rank="largest"),
    "ties_svd": entrywise(Magnitude(density=0.3), Elect(), Deltas()),
    "magnitude_prune_svd": entrywise(Magnitude(density=0.3), WeightedSum(), Deltas()),
    "linear": entrywise(None, WeightedSum(), Factors()),
    "ties": entrywise(Magnitude(density=0.3), Elect(), Factors()),
    "magnitude_prune": entrywise(Magnitude(density=0.3), WeightedSum(), Factors()),
}
RANDOM: dict[str, Merge] = {
    "dare_linear_svd": entrywise(Dare(density=0.6), WeightedSum(), Deltas()),
    "dare_ties_svd": entrywise(Dare(density=0.6), Elect(), Deltas()),
    "dare_linear": entrywise(Dare(density=0.6), WeightedSum(), Factors()),
    "dare_ties": entrywise(Dare(density=0.6), Elect(), Factors()),
}


def mixed(combination_type: str) -> int | None:
    """PEFT takes mixed ranks for cat and svd alone."""
    return None if combination_type == "cat" or combination_type.endswith("svd") else 3


@pytest.mark.parametrize("combination_type", EXACT)
def test_deltas_are_those_of_peft(combination_type):
    experts = parents(mixed(combination_type))
    density = {} if combination_type in ("cat", "svd", "linear") else {"density": 0.3}
    merged = EXACT[combination_type](experts, name="m", generator=torch.Generator())
    assert_near(merged.block, peft_deltas(experts, combination_type, **density), experts)


@pytest.mark.parametrize("combination_type", ["linear", "ties", "ties_svd"])
def test_negative_weights_are_those_of_peft(combination_type):
    experts = parents(mixed(combination_type), [1, -0.5, 2, -0.25, 1, 0.7, -1.3, 0.1])
    density = {} if combination_type == "linear" else {"density": 0.3}
    merged = EXACT[combination_type](experts, name="m", generator=torch.Generator())
    assert_near(merged.block, peft_deltas(experts, combination_type, **density), experts)


@pytest.mark.parametrize("combination_type", RANDOM)
def test_deltas_are_those_of_peft_on_the_same_draws(combination_type, monkeypatch):
    experts = parents(mixed(combination_type))
    merged = RANDOM[combination_type](experts, name="m", generator=torch.Generator().manual_seed(5))
    # PEFT draws initial factors in between, so that seeding the global generator would not line masks up.
    draws, bernoulli = torch.Generator().manual_seed(5), torch.bernoulli
    monkeypatch.setattr(merge_utils.torch, "bernoulli", lambda share: bernoulli(share, generator=draws))
    assert_near(merged.block, peft_deltas(experts, combination_type, density=0.6), experts)


def test_election_by_frequency_is_that_of_peft():
    experts = parents()
    merge = entrywise(Magnitude(density=0.3), Elect(majority="frequency"), Deltas())
    merged = merge(experts, name="m", generator=torch.Generator())
    peft = peft_deltas(experts, "ties_svd", density=0.3, majority_sign_method="frequency")
    assert_near(merged.block, peft, experts)


def test_rslora_experts_are_summed_right_where_peft_is_wrong_by_the_root_of_the_new_rank():
    experts = parents(4)
    scaled = [
        type(parent)(
            type(parent.block)(
                parent.block.card,
                {
                    site: type(update)(update.A, update.B, update.scale * math.sqrt(update.rank))
                    for site, update in parent.block.factors.items()
                },
            ),
            parent.weight,
            parent.digest,
        )
        for parent in experts
    ]
    merged = Linear()(scaled, name="m", generator=torch.Generator())
    truth = true_deltas(scaled)
    assert furthest(merged.block, truth) < 4e-6  # entries of up to 20
    peft = peft_deltas(experts, "cat", rslora=True)
    for site, delta in truth.items():
        assert (peft[site] - math.sqrt(8 * 4) * delta).abs().max() < 1e-4


def test_summing_factors_is_not_summing_updates():
    experts = parents(3)
    merged = EXACT["linear"](experts, name="m", generator=torch.Generator())
    truth = true_deltas(experts)
    error = sum((merged.block.factors[s].delta() - d).square().sum() for s, d in truth.items())
    assert error / sum(d.square().sum() for d in truth.values()) > 0.5
