"""What every merge checks and remembers, whatever its method."""

from dataclasses import replace

import pytest
import torch

from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.errors import ConfigError, IncompatibleBlock
from pmemx.core.merge import Merged, Parent
from pmemx.merge.linear import Linear


def parent(name: str = "law", weight: float = 1.0, digest: str = "", width: int = 5, **card: str) -> Parent:
    factors = {"a": LoraFactors(torch.eye(2, width), torch.eye(4, 2), 1.0)}
    fields = {"domain": name, "base": "b", "base_name": "tiny", "licence": "MIT"} | card
    return Parent(CapabilityBlock(BlockCard(name, **fields), factors), weight, digest or name)


def merged(*parents: Parent, **settings) -> Merged:
    return Linear(**settings)(parents, name="m", generator=torch.Generator())


def test_the_card_tells_parents_recipe_and_loss():
    found = merged(parent("law", 2.0, "f" * 64), parent("art", 0.5, "e" * 64), rank=1)
    card = found.block.card
    assert (card.name, card.base, card.base_name, card.domain) == ("m", "b", "tiny", "art, law")
    assert card.parents == ("e" * 64, "f" * 64)
    assert card.recipe["parents"] == ["art", "law"] and card.recipe["weights"] == [0.5, 2.0]
    assert card.recipe["merge"] == {"type": "pmemx.merge.linear.Linear", "scaling": 1.0, "rank": 1}
    # Two equal singular values at the site, one of which went.
    assert found.lost_energy == pytest.approx(0.5) == card.metrics["lost_energy"]


def test_lost_energy_is_a_share_over_all_sites():
    law = parent()
    factors = {"a": law.block.factors["a"], "b": LoraFactors(torch.eye(1, 5), 3 * torch.eye(4, 1), 1.0)}
    both = replace(law, block=replace(law.block, factors=factors))
    assert merged(both, rank=1).lost_energy == pytest.approx(1 / (2 + 9))


@pytest.mark.parametrize(
    ("licences", "expected"),
    [(("MIT", "MIT"), "MIT"), (("MIT", "Apache-2.0"), "Apache-2.0 AND MIT"), (("MIT", ""), "")],
)
def test_the_licence_is_that_of_all_parents_or_of_none(licences, expected):
    parents = [parent(str(number), licence=licence) for number, licence in enumerate(licences)]
    assert merged(*parents).block.card.licence == expected


def test_half_precision_experts_are_merged_in_float32():
    law = parent()
    half = {site: LoraFactors(f.A.bfloat16(), f.B.bfloat16(), 1 / 3) for site, f in law.block.factors.items()}
    found = merged(replace(law, block=replace(law.block, factors=half))).block.factors["a"]
    assert found.B.dtype == torch.float32
    assert torch.allclose(found.delta(), torch.eye(4, 2) @ torch.eye(2, 5) / 3, atol=1e-7)


def test_nothing_to_merge_is_refused():
    with pytest.raises(IncompatibleBlock, match="at least one block; distil one"):
        merged()


def test_a_block_that_comes_twice_is_refused():
    with pytest.raises(IncompatibleBlock, match="law enters the merge twice; give it once"):
        merged(parent(), parent("art"), parent())


def test_versions_of_one_name_are_merged():
    assert merged(parent(digest="1"), parent(digest="2")).block.card.parents == ("1", "2")


def test_blocks_of_two_bases_are_refused():
    with pytest.raises(IncompatibleBlock, match="different bases cannot be merged"):
        merged(parent(), parent("art", base="other"))


def test_a_site_of_two_shapes_is_refused():
    with pytest.raises(IncompatibleBlock, match="a maps 6 to 4 in art, but 5 to 4 in another block"):
        merged(parent(), parent("art", width=6))


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused(weight):
    with pytest.raises(ConfigError, match=r"the weight of art is (nan|inf); give a finite number"):
        merged(parent(), parent("art", weight))
