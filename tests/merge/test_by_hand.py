"""One case by hand for every method, on updates of one row."""

import pytest
import torch

from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.errors import ConfigError, IncompatibleBlock
from pmemx.core.merge import Merge, Merged, Parent
from pmemx.merge.average import Average
from pmemx.merge.dare import Dare
from pmemx.merge.deltas import Deltas
from pmemx.merge.elect import Elect
from pmemx.merge.elect_weighted import ElectWeighted
from pmemx.merge.entrywise import Combine, EntrywiseMerge, Prune
from pmemx.merge.factors import Factors
from pmemx.merge.knots import Knots
from pmemx.merge.linear import Linear
from pmemx.merge.magnitude import Magnitude
from pmemx.merge.space import Space
from pmemx.merge.threshold import Threshold
from pmemx.merge.weighted_sum import WeightedSum


def row(number: int, weight: float, **sites: list[float]) -> Parent:
    """An expert whose update of a site is one row."""
    factors = {site: LoraFactors(torch.tensor([entries]), torch.ones(1, 1), 1.0) for site, entries in sites.items()}
    return Parent(CapabilityBlock(BlockCard(f"e{number}", "d", "b"), factors), weight, str(number))


def merged(merge: Merge, *parents: Parent, seed: int = 0) -> Merged:
    return merge(parents, name="m", generator=torch.Generator().manual_seed(seed))


def deltas(merge: Merge, *parents: Parent) -> dict[str, list[float]]:
    factors = merged(merge, *parents).block.factors
    return {site: [round(x, 5) + 0.0 for x in update.delta()[0].tolist()] for site, update in factors.items()}


def entrywise(combine: Combine, prune: Prune | None = None, space: Space | None = None, **settings) -> EntrywiseMerge:
    return EntrywiseMerge(combine=combine, prune=prune, space=space or Deltas(), **settings)


ONE, TWO, THREE = row(1, 1.0, a=[4.0, 1.0, -3.0, 0.5]), row(2, 2.0, a=[2.0, -2.0, -1.0, 0.1]), row(3, 1.0, b=[5.0])


def test_the_sum():
    assert deltas(Linear(), ONE, TWO, THREE) == {"a": [8.0, -3.0, -5.0, 0.7], "b": [5.0]}


def test_task_arithmetic_scales_the_sum():
    assert deltas(Linear(scaling=0.5), ONE, TWO) == {"a": [4.0, -1.5, -2.5, 0.35]}


def test_the_mean_divides_by_the_sum_of_weights_and_counts_absent_experts_as_zero():
    assert deltas(Average(), ONE, TWO, THREE) == {"a": [2.0, -0.75, -1.25, 0.175], "b": [1.25]}


def test_ties_of_peft_elects_without_weights_and_divides_by_the_number():
    # Trimmed to [4, 0, -3, 0] and [2, -2, 0, 0]; signs elected +, -, -, +.
    merge = entrywise(Elect(), Magnitude(density=0.5))
    assert deltas(merge, ONE, TWO) == {"a": [(4 + 2 * 2) / 2, -4.0, -3.0, 0.0]}


def test_ties_of_mergekit_elects_with_weights_and_divides_by_their_sum():
    merge = entrywise(ElectWeighted(), Magnitude(density=0.5))
    assert deltas(merge, ONE, TWO) == {"a": [round((4 + 2 * 2) / 3, 5), -2.0, -3.0, 0.0]}


def test_weights_vote_in_mergekit_and_not_in_peft():
    plus, minus = row(1, 1.0, a=[3.0]), row(2, 2.0, a=[-2.0])
    assert deltas(entrywise(Elect()), plus, minus) == {"a": [3.0]}
    assert deltas(entrywise(ElectWeighted()), plus, minus) == {"a": [-2.0]}


def test_with_equal_weights_mergekit_is_the_number_of_experts_times_peft():
    third = [row(n, 1 / 3, a=[1.0 + n, -n, 0.5 * n]) for n in range(1, 4)]
    peft, mergekit = deltas(entrywise(Elect()), *third), deltas(entrywise(ElectWeighted()), *third)
    assert mergekit["a"] == pytest.approx([3 * x for x in peft["a"]], abs=1e-4)


def test_ties_of_the_paper_trims_by_one_threshold_over_all_sites():
    big, small = [9.0, 8.0, 7.0, 6.0], [1.0, 2.0, 0.5, 0.1]
    expert = row(1, 1.0, a=big, b=small)
    assert deltas(entrywise(Elect(), Threshold(density=0.5)), expert) == {"a": big, "b": [0.0] * 4}
    by_site = deltas(entrywise(Elect(), Magnitude(density=0.5)), expert)
    assert by_site == {"a": [9.0, 8.0, 0.0, 0.0], "b": [1.0, 2.0, 0.0, 0.0]}


def test_the_threshold_is_that_of_a_sort():
    generator = torch.Generator().manual_seed(0)
    sites = {name: (torch.randn(50, generator=generator) ** 3).tolist() for name in "abc"}
    everything = torch.cat([torch.tensor(entries) for entries in sites.values()])
    for density in (0.01, 0.2, 0.5, 1.0):
        kept = deltas(entrywise(Elect(), Threshold(density=density)), row(1, 1.0, **sites))
        smallest = everything.abs().sort(descending=True).values[max(1, int(density * 150)) - 1]
        expected = torch.where(everything.abs() >= smallest, everything, 0.0)
        assert torch.allclose(torch.tensor([x for row in kept.values() for x in row]), expected, atol=2e-5)


def test_magnitude_pruning_sums_what_is_left():
    assert deltas(entrywise(WeightedSum(), Magnitude(density=0.5)), ONE, TWO) == {"a": [8.0, -4.0, -3.0, 0.0]}


def test_dare_keeps_an_entry_with_its_density_and_divides_it_by_that():
    merge = entrywise(WeightedSum(), Dare(density=0.25))
    generator, ones = torch.Generator().manual_seed(0), row(1, 1.0, a=[1.0] * 2000)
    found = merge([ones], name="m", generator=generator).block.factors["a"].delta()
    assert {round(x, 3) for x in found[0].tolist()} == {0.0, 4.0}
    assert 0.22 < (found > 2).float().mean() < 0.28


def test_dare_draws_from_its_generator_alone():
    merge, state = entrywise(WeightedSum(), Dare(density=0.5)), torch.get_rng_state()
    one, two = merged(merge, ONE, TWO, seed=1), merged(merge, ONE, TWO, seed=1)
    assert torch.equal(one.block.factors["a"].delta(), two.block.factors["a"].delta())
    assert torch.equal(torch.get_rng_state(), state)
    generator = torch.Generator().manual_seed(1)
    drawn = [merge([ONE, TWO], name="m", generator=generator).block.factors["a"].delta() for _ in range(8)]
    assert any(not torch.equal(drawn[0], other) for other in drawn[1:])


def test_factors_apart_make_cross_terms():
    one = CapabilityBlock(
        BlockCard("1", "d", "b"), {"a": LoraFactors(torch.tensor([[1.0, 0.0]]), torch.eye(2)[:, :1], 4.0)}
    )
    two = CapabilityBlock(
        BlockCard("2", "d", "b"), {"a": LoraFactors(torch.tensor([[0.0, 1.0]]), torch.eye(2)[:, 1:], 1.0)}
    )
    found = merged(entrywise(WeightedSum(), space=Factors()), Parent(one, 1.0, "1"), Parent(two, 1.0, "2"))
    # (2 b_1 + b_2)(2 a_1 + a_2): the updates' sum would be diag(4, 1).
    assert torch.allclose(found.block.factors["a"].delta(), torch.tensor([[4.0, 2.0], [2.0, 1.0]]))


def test_aligned_experts_of_one_output_direction_are_merged_in_it():
    # One row each: U is 1 x 1, and what is merged are the rows themselves, up to a common sign.
    merge = entrywise(Elect(), Magnitude(density=0.5), Knots())
    assert deltas(merge, ONE, TWO) == {"a": [4.0, -4.0, -3.0, 0.0]}


def test_a_mean_by_weights_refuses_a_negative_one():
    with pytest.raises(ConfigError, match="has weight -1; give positive weights"):
        merged(entrywise(ElectWeighted()), ONE, row(2, -1.0, a=[1.0] * 4))
    with pytest.raises(ConfigError, match="sum to 0"):
        merged(Average(), ONE, row(2, -1.0, a=[1.0] * 4))


def test_unequal_ranks_cannot_be_merged_as_factors():
    wide = CapabilityBlock(BlockCard("w", "d", "b"), {"a": LoraFactors(torch.ones(2, 4), torch.ones(1, 2), 1.0)})
    with pytest.raises(IncompatibleBlock, match="ranks 1, 2 at a"):
        merged(entrywise(WeightedSum(), space=Factors()), ONE, Parent(wide, 1.0, "w"))


@pytest.mark.parametrize("prune", [Magnitude, Threshold, Dare])
@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, float("nan")])
def test_a_density_that_is_no_share_is_refused(prune, density):
    with pytest.raises(ConfigError, match="density"):
        prune(density=density)


def test_a_density_that_keeps_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"keeps none of 4 entries; give at least 0\.25"):
        merged(entrywise(Elect(), Magnitude(density=0.2)), ONE)
