"""LoRA-LEGO on units whose clusters are known, against the formula cluster by cluster."""

import math
import warnings
from typing import Literal

import pytest
import torch
from weighted_experts import WIDTHS, furthest, parents

from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.core.merge import Merged, Parent
from pmemx.merge.lego import Lego

CENTRES, SITES = 3, ("a", "b")
Unit = tuple[int, torch.Tensor, torch.Tensor]  # number of its centre, a, b


def parent(number: int, factors: dict[str, LoraFactors], weight: float = 1.0) -> Parent:
    return Parent(CapabilityBlock(BlockCard(f"e{number}", "d", "base"), factors), weight, f"{number:064d}")


def merged(experts: list[Parent], clusters: int | Literal["largest"] = "largest", seed: int = 0) -> Merged:
    return Lego(clusters=clusters)(experts, name="m", generator=torch.Generator().manual_seed(seed))


def of_units(units: list[Unit], scale: float = 1.0) -> LoraFactors:
    return LoraFactors(torch.stack([a for _, a, _ in units]), torch.stack([b for _, _, b in units], dim=1), scale)


def clustered_experts() -> tuple[list[Parent], dict[str, list[list[Unit]]]]:
    """Eight experts of ranks 1 to 3, scales and weights of their own, with units near three directions a site."""
    generator = torch.Generator().manual_seed(0)
    centres = {
        site: [(torch.randn(20, generator=generator), torch.randn(14, generator=generator)) for _ in range(CENTRES)]
        for site in SITES
    }
    experts, pools = [], {site: [] for site in SITES}
    for number in range(8):
        weight, scale, factors = 0.5 + number / 4, (1 + number) / 4, {}
        for site in SITES:
            if site == "b" and number % 3 == 0:
                continue
            units = []
            for rank in range(1 + number % 3):
                centre = (number + rank) % CENTRES
                a, b = centres[site][centre]
                size = 0.3 + 0.4 * torch.rand(2, generator=generator)
                a = size[0] * (a + 0.01 * torch.randn(20, generator=generator))
                b = size[1] * (b + 0.01 * torch.randn(14, generator=generator))
                units.append((centre, a, b))
            factors[site] = of_units(units, scale)
            root = math.sqrt(weight * scale)
            pools[site].append([(centre, root * a.double(), root * b.double()) for centre, a, b in units])
        experts.append(parent(number, factors, weight))
    return experts, pools


def formula(pool: list[list[Unit]]) -> torch.Tensor:
    """The merged update of a site, centre by centre, from the grouping by which the units were made."""
    total = torch.zeros(14, 20, dtype=torch.float64)
    for centre in range(CENTRES):
        group = [torch.cat([a, b]) for units in pool for number, a, b in units if number == centre]
        mean = torch.stack(group).mean(dim=0)
        mean = mean * (sum(float(unit.abs().max()) for unit in group) / len(group)) / float(mean.abs().max())
        total += torch.outer(mean[20:], mean[:20])
    mean_rank = sum(len(units) for units in pool) / len(pool)
    return math.sqrt(mean_rank / CENTRES) * total


def deltas(block: CapabilityBlock) -> dict[str, torch.Tensor]:
    return {site: update.delta() for site, update in block.factors.items()}


def test_one_block_of_as_many_ranks_as_clusters_is_unchanged():
    for expert in parents(weights=[1.0] * 8):
        found = merged([expert])
        assert furthest(found.block, deltas(expert.block)) < 2e-6
        assert found.lost_energy == 0.0


@pytest.mark.parametrize("clusters", ["largest", 7])
def test_a_block_and_its_copies_are_the_block_however_many_clusters_are_asked_for(clusters):
    block = parents(4)[1].block
    copies = [parent(number, dict(block.factors)) for number in range(8)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = merged(copies, clusters)
    assert {update.rank for update in found.block.factors.values()} == {4}
    assert furthest(found.block, deltas(block)) < 2e-6


@pytest.mark.parametrize("clusters", [1, 2, 5, 9, 18, 40])
def test_a_merge_has_as_many_units_as_clusters_or_as_there_are_units(clusters):
    experts = parents()
    found = merged(experts, clusters).block
    for site, update in found.factors.items():
        pool = sum(expert.block.factors[site].rank for expert in experts if site in expert.block.factors)
        assert update.rank == min(clusters, pool)


def test_two_units_of_one_direction_by_hand():
    # The units (1, 0; 2) and (3, 0; 2): mean (2, 0; 2), whose largest magnitude, 2, was 2 and 3, in the mean 2.5.
    one = parent(1, {"a": LoraFactors(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0]]), 1.0)})
    two = parent(2, {"a": LoraFactors(torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0]]), 1.0)})
    found = merged([one, two]).block.factors["a"]
    assert found.rank == 1
    assert found.delta()[0].tolist() == pytest.approx([2.5 * 2.5, 0.0], abs=1e-6)


def test_fewer_clusters_than_ranks_are_scaled_up_by_the_root_of_the_ratio():
    # Both units of one expert in one cluster: mean (1, 0; 1) after rescaling, times sqrt(2 / 1).
    unit = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    found = merged([parent(1, {"a": LoraFactors(unit, torch.ones(1, 2), 1.0)})], 1).block.factors["a"]
    assert found.delta()[0].tolist() == pytest.approx([math.sqrt(2), 0.0], abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_known_clusters_are_found_and_merged_by_the_formula(seed):
    experts, pools = clustered_experts()
    found = merged(experts, CENTRES, seed).block
    assert {site: update.rank for site, update in found.factors.items()} == dict.fromkeys(SITES, CENTRES)
    assert furthest(found, {site: formula(pools[site]) for site in SITES}) < 2e-6


def test_the_order_of_units_in_an_expert_is_irrelevant():
    experts, _ = clustered_experts()
    turned = [
        parent(
            number,
            {s: LoraFactors(f.A.flip(0), f.B.flip(1), f.scale) for s, f in expert.block.factors.items()},
            expert.weight,
        )
        for number, expert in enumerate(experts)
    ]
    one, other = merged(experts, CENTRES).block, merged(turned, CENTRES).block
    assert furthest(one, deltas(other)) < 2e-6


def test_scale_and_weight_enter_by_their_root_on_either_side():
    experts = parents(3)
    folded = []
    for number, expert in enumerate(experts):
        factors = {}
        for site, update in expert.block.factors.items():
            root = math.sqrt(expert.weight * update.scale)
            factors[site] = LoraFactors(root * update.A, root * update.B, 1.0)
        folded.append(parent(number, factors))
    one, other = merged(experts).block, merged(folded).block
    assert furthest(one, deltas(other)) < 2e-6


def test_a_negative_weight_turns_an_update():
    expert = parents(3)[1]
    turned = merged([Parent(expert.block, -1.0, expert.digest)]).block
    assert furthest(turned, {site: -delta for site, delta in deltas(expert.block).items()}) < 2e-6


def test_an_expert_or_a_unit_of_zero_is_not_there():
    experts = parents(3)
    spelt = []
    for expert in experts:
        factors = {
            site: LoraFactors(torch.zeros(3, width_in), torch.ones(width_out, 3), 1.0)
            for site, (width_in, width_out) in WIDTHS.items()
        }
        for site, update in expert.block.factors.items():
            A, B = torch.cat([torch.ones_like(update.A[:1]), update.A]), torch.cat([0 * update.B[:, :1], update.B], 1)
            factors[site] = LoraFactors(A, B, update.scale)
        spelt.append(Parent(CapabilityBlock(expert.block.card, factors), expert.weight, expert.digest))
    one, other = merged(experts, 3).block, merged(spelt, 3).block
    assert furthest(one, deltas(other)) == 0.0


def test_a_site_that_no_expert_moves_stays_where_it_is():
    untrained = LoraFactors(torch.ones(2, 5), torch.zeros(4, 2), 1.0)
    found = merged([parent(number, {"a": untrained}) for number in range(8)]).block.factors["a"]
    assert (found.A.shape, found.B.shape) == ((1, 5), (4, 1))
    assert not found.delta().any()


def test_units_that_cancel_leave_nothing():
    one, two = (
        parent(n, {"a": LoraFactors(s * torch.ones(1, 3), s * torch.ones(2, 1), 1.0)}) for n, s in ((1, 1), (2, -1))
    )
    assert not merged([one, two]).block.factors["a"].delta().any()


@pytest.mark.parametrize("clusters", [0, -1, True])
def test_what_is_no_number_of_clusters_is_refused(clusters):
    with pytest.raises(ConfigError, match="is no number of units; give 1 or more, or 'largest'"):
        Lego(clusters=clusters)
