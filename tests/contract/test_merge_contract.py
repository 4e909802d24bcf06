"""Laws of every merge in conf/merge."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.merge import Merge, Merged, Parent
from pmemx.core.peft_folder import read_peft_folder, write_peft_folder
from pmemx.stage.build import build

FILES = sorted((Path(__file__).parents[2] / "conf" / "merge").glob("*.yaml"))
WIDTHS = {"layers.0.q_proj": (24, 16), "layers.0.up_proj": (16, 40), "layers.1.q_proj": (24, 16)}

# These make the singular values of a site equal by their very definition, and so keep a block in which they are.
EQUALISING = ("iso", "iso_cts")


def made(file: Path, *, whole: bool = False) -> Merge:
    """whole: with nothing pruned, dropped, scaled or cut, which leaves the definition of the method alone."""
    config = OmegaConf.to_container(OmegaConf.load(file))
    if whole:
        config |= {key: 1.0 for key in ("scaling", "rank") if key in config}
        if config.get("prune"):
            config["prune"]["density"] = 1.0
    return build(config)


def parents(count: int = 9) -> list[Parent]:
    """Experts of one rank, which every space takes, with scales, weights, sites and data of their own."""
    found = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        factors = {}
        for place, (site, (width_in, width_out)) in enumerate(WIDTHS.items()):
            if place == 0 or (number + place) % 3:
                A = torch.randn(3, width_in, generator=generator) * 0.2
                B = torch.randn(width_out, 3, generator=generator) * 0.2
                factors[site] = LoraFactors(A, B, 0.5 + number / 4)
        card = BlockCard(f"e{number}", "d", "base", base_name="tiny")
        # Of 64 tokens, at every site: data pass those as well that the expert leaves alone.
        moments = {}
        for site, (width_in, _) in WIDTHS.items():
            x = torch.randn(64, width_in, generator=generator)
            moments[site] = x.T @ x / 64
        found.append(Parent(CapabilityBlock(card, factors), 1 + number / 8, f"{number:064x}", moments))
    return found


def isotropic(factors: Mapping[str, LoraFactors]) -> dict[str, LoraFactors]:
    """The same directions with one singular value a site."""
    found = {}
    for site, update in factors.items():
        U, S, Vh = torch.linalg.svd(update.delta())
        found[site] = LoraFactors(Vh[: update.rank], U[:, : update.rank], float(S[0]))
    return found


def merged(merge: Merge, parents: list[Parent], seed: int = 0) -> Merged:
    return merge(parents, name="merged", generator=torch.Generator().manual_seed(seed))


def same(one: CapabilityBlock, other: CapabilityBlock) -> bool:
    return one.factors.keys() == other.factors.keys() and all(
        torch.equal(f.A, other.factors[s].A) and torch.equal(f.B, other.factors[s].B) for s, f in one.factors.items()
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
class TestMerge:
    def test_one_block_at_weight_1_is_unchanged_where_all_of_it_is_kept(self, file):
        _, parent = parents(2)
        block = parent.block
        if file.stem in EQUALISING:
            block = CapabilityBlock(block.card, isotropic(block.factors))
        found = merged(made(file, whole=True), [Parent(block, 1.0, "x", parent.moments)])
        assert found.block.factors.keys() == block.factors.keys()
        for site, update in block.factors.items():
            assert (found.block.factors[site].delta() - update.delta()).abs().max() < 1e-6
        assert found.lost_energy < 1e-10

    def test_the_order_of_parents_is_irrelevant_to_the_last_bit(self, file):
        experts = parents()
        order = torch.randperm(len(experts), generator=torch.Generator().manual_seed(1)).tolist()
        one, other = (merged(made(file), group) for group in (experts, [experts[number] for number in order]))
        assert same(one.block, other.block) and one.block.card == other.block.card

    def test_the_same_seed_gives_the_same_bits_and_no_other_randomness_is_touched(self, file):
        state = torch.get_rng_state()
        assert same(merged(made(file), parents(), 3).block, merged(made(file), parents(), 3).block)
        assert torch.equal(torch.get_rng_state(), state)

    def test_parents_are_recorded_and_untouched(self, file):
        experts = parents()
        card = merged(made(file), experts).block.card
        assert card.parents == tuple(parent.digest for parent in experts)
        assert card.recipe["weights"] == [parent.weight for parent in experts]
        assert all(same(one.block, other.block) for one, other in zip(experts, parents(), strict=True))

    def test_sites_are_those_of_all_parents_and_finite(self, file):
        found = merged(made(file), parents())
        assert found.block.factors.keys() == WIDTHS.keys()
        for site, update in found.block.factors.items():
            assert (update.A.shape[1], update.B.shape[0]) == WIDTHS[site]
            assert update.delta().isfinite().all() and update.delta().any()

    def test_lost_energy_is_a_share_and_stands_on_the_card(self, file):
        found = merged(made(file), parents())
        assert 0 <= found.lost_energy < 1
        assert found.block.card.metrics["lost_energy"] == found.lost_energy

    def test_an_absent_site_is_an_update_of_zero(self, file):
        experts = parents()
        spelt = []
        for parent in experts:
            zero = {
                site: LoraFactors(torch.zeros(3, width_in), torch.zeros(width_out, 3), 1.0)
                for site, (width_in, width_out) in WIDTHS.items()
            }
            block = CapabilityBlock(parent.block.card, zero | dict(parent.block.factors))
            spelt.append(Parent(block, parent.weight, parent.digest, parent.moments))
        one, other = (merged(made(file, whole=True), group) for group in (experts, spelt))
        for site, update in one.block.factors.items():
            assert (update.delta() - other.block.factors[site].delta()).abs().max() < 1e-5

    def test_the_result_survives_a_peft_folder(self, file, tmp_path):
        block = merged(made(file), parents()).block
        again = read_peft_folder(write_peft_folder(block, tmp_path / "adapter"))
        assert (again.card.name, again.card.base) == ("merged", "base")
        for site, update in block.factors.items():
            assert torch.equal(again.factors[site].delta(), update.delta())
