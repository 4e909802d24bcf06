"""SCE against its definition and mergekit's formulas, entry by entry."""

from collections.abc import Sequence

import pytest
import torch
from weighted_experts import WIDTHS, furthest, parents

from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.core.merge import Parent
from pmemx.merge.deltas import Deltas
from pmemx.merge.entrywise import EntrywiseMerge
from pmemx.merge.sce import EnergyWeighted, TopVariance

Row = list[float]


def sce(density: float = 1.0) -> EntrywiseMerge:
    return EntrywiseMerge(combine=EnergyWeighted(), prune=TopVariance(density=density), space=Deltas(), rank=1.0)


def row(number: int, weight: float, **sites: Row) -> Parent:
    """An expert whose update of a site is one row."""
    factors = {site: LoraFactors(torch.tensor([entries]), torch.ones(1, 1), 1.0) for site, entries in sites.items()}
    return Parent(CapabilityBlock(BlockCard(f"e{number}", "d", "b"), factors), weight, str(number))


def merged(experts: Sequence[Parent], density: float = 1.0) -> CapabilityBlock:
    return sce(density)(experts, name="m", generator=torch.Generator()).block


def first_row(block: CapabilityBlock, site: str = "a") -> Row:
    return block.factors[site].delta()[0].tolist()


def naive(experts: Sequence[Parent], density: float) -> dict[str, torch.Tensor]:
    """Select, calculate, erase: plain sums over plain numbers, with a zero for a site that an expert does not adapt."""
    found = {}
    for site, (width_in, width_out) in WIDTHS.items():
        updates = []
        for parent in experts:
            zeros = torch.zeros(width_out, width_in, dtype=torch.float64)
            update = parent.block.factors.get(site)
            dense = zeros if update is None else parent.weight * update.scale * update.B.double() @ update.A.double()
            updates.append(dense.flatten().tolist())
        columns = [list(column) for column in zip(*updates, strict=True)]
        means = [sum(column) / len(column) for column in columns]
        variances = [
            sum((x - mean) ** 2 for x in column) / len(column) for column, mean in zip(columns, means, strict=True)
        ]
        if density < 1:
            number = int(density * sum(variance != 0 for variance in variances))
            smallest = sorted(variances, reverse=True)[number - 1]
            columns = [
                column if variance >= smallest else [0.0] * len(column)
                for column, variance in zip(columns, variances, strict=True)
            ]
        squares = [sum(x * x for x in update) / len(update) for update in zip(*columns, strict=True)]
        coefficients = [square / sum(squares) for square in squares]
        entries = []
        for column in columns:
            sign = 1 if sum(column) >= 0 else -1
            agreeing = [(c, x) for c, x in zip(coefficients, column, strict=True) if x * sign > 0]
            divisor = sum(c for c, _ in agreeing) or 1.0
            entries.append(sum(c * x for c, x in agreeing) / divisor)
        found[site] = torch.tensor(entries).view(width_out, width_in)
    return found


def test_entries_are_averaged_by_energy_over_the_majority():
    # Energies 26 and 5; the second entry is elected negative.
    one, two = row(1, 1.0, a=[5.0, 1.0]), row(2, 1.0, a=[1.0, -2.0])
    assert first_row(merged([one, two])) == pytest.approx([(26 * 5 + 5 * 1) / 31, -2.0], abs=1e-5)


def test_the_entries_at_which_experts_differ_most_are_selected():
    # Variances 0, 4, 1, 9, and one entry is the third of the three that are not 0.
    one, two = row(1, 1.0, a=[7.0, 4.0, 1.0, 3.0]), row(2, 1.0, a=[7.0, 0.0, 3.0, -3.0])
    assert first_row(merged([one, two], 0.34)) == pytest.approx([0.0, 0.0, 0.0, 3.0], abs=1e-5)
    # Energies of what is selected: 25 and 9, so that zero has no say in the second entry.
    assert first_row(merged([one, two], 0.67)) == pytest.approx([0.0, 4.0, 0.0, 3.0], abs=1e-5)


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_a_merge_is_that_of_the_definition_entry_by_entry(density):
    experts = parents()
    assert furthest(merged(experts, density), naive(experts, density)) < 2e-6


def test_negative_weights_are_those_of_the_definition():
    experts = parents(weights=[1, -0.5, 2, -0.25, 1, 0.7, -1.3, 0.1])
    assert furthest(merged(experts, 0.5), naive(experts, 0.5)) < 2e-6


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_an_absent_site_is_an_update_of_zero_in_a_selection_too(density):
    experts = parents()
    spelt = []
    for parent in experts:
        zeros = {
            site: LoraFactors(torch.zeros(1, width_in), torch.zeros(width_out, 1), 1.0)
            for site, (width_in, width_out) in WIDTHS.items()
        }
        block = CapabilityBlock(parent.block.card, zeros | dict(parent.block.factors))
        spelt.append(Parent(block, parent.weight, parent.digest))
    one, other = merged(experts, density), merged(spelt, density)
    assert furthest(one, {site: update.delta() for site, update in other.factors.items()}) < 2e-6


def test_an_expert_alone_at_a_site_is_selected_there_by_magnitude():
    one, two = row(1, 1.0, a=[1.0, -4.0, 3.0, 2.0]), row(2, 1.0, b=[1.0, 1.0])
    assert first_row(merged([one, two], 0.5)) == pytest.approx([0.0, -4.0, 3.0, 0.0], abs=1e-5)


def test_one_factor_for_all_experts_goes_through():
    experts = parents()
    larger = [Parent(parent.block, 3 * parent.weight, parent.digest) for parent in experts]
    tripled = {site: 3 * update.delta() for site, update in merged(experts, 0.5).factors.items()}
    assert furthest(merged(larger, 0.5), tripled) < 2e-6


def test_an_expert_of_weight_zero_is_not_there():
    one, two, off = row(1, 1.0, a=[5.0, 1.0]), row(2, 1.0, a=[1.0, -2.0]), row(3, 0.0, a=[9.0, 9.0])
    assert first_row(merged([one, two, off])) == pytest.approx(first_row(merged([one, two])), abs=1e-6)


def test_a_site_that_no_expert_moves_stays_where_it_is():
    one, two = row(1, 1.0, a=[0.0, 0.0], b=[1.0] * 5), row(2, 1.0, a=[0.0, 0.0], b=[2.0] * 5)
    for density in (0.5, 1.0):
        assert first_row(merged([one, two], density)) == [0.0, 0.0]


def test_a_selection_among_experts_that_do_not_differ_is_refused():
    with pytest.raises(ConfigError, match=r"density 0\.5 keeps none of 0 entries at which 1 experts differ"):
        merged([row(1, 1.0, a=[1.0, 2.0])], 0.5)


@pytest.mark.parametrize("density", [0.0, 1.1, float("nan")])
def test_a_density_that_is_no_share_is_refused(density):
    with pytest.raises(ConfigError, match="density"):
        TopVariance(density=density)
