"""Laws of every transform in conf/transform."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from pmemx.core.bank import ExpertBank
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.digest import fingerprint
from pmemx.core.errors import IncompatibleBlock
from pmemx.core.peft_folder import read_peft_folder, write_peft_folder
from pmemx.core.transform import Transform
from pmemx.stage.build import build

FILES = sorted((Path(__file__).parents[2] / "conf" / "transform").glob("*.yaml"))
WIDTHS = {"layers.0.q_proj": (24, 24), "layers.0.up_proj": (16, 40), "layers.1.q_proj": (24, 24)}


def made(file: Path) -> Transform:
    return build(OmegaConf.to_container(OmegaConf.load(file)))


def model() -> nn.Module:
    """Linear layers under the names of the sites, and one that no expert adapts."""
    generator = torch.Generator().manual_seed(7)
    root = nn.Module()
    root.layers = nn.ModuleList(nn.Module() for _ in range(2))
    root.head = nn.Linear(24, 5)
    for site, (width_in, width_out) in WIDTHS.items():
        path, _, name = site.rpartition(".")
        setattr(root.get_submodule(path), name, nn.Linear(width_in, width_out))
    for parameter in root.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return root.eval().requires_grad_(False)


def blocks(count: int = 9) -> list[CapabilityBlock]:
    """Experts of their own ranks, scales and sites; the first one knows what is general."""
    base, found = fingerprint(model()), []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        rank, factors = 1 + number % 4, {}
        for place, (site, (width_in, width_out)) in enumerate(WIDTHS.items()):
            if place == 0 or (number + place) % 3:
                A = torch.randn(rank, width_in, generator=generator) * 0.4
                B = torch.randn(width_out, rank, generator=generator) * 0.4
                factors[site] = LoraFactors(A, B, 0.5 + number / 4)
        name = f"e{number}" if number else "general"
        card = BlockCard(name, f"d{number}", base, base_name="tiny", origin="fine_tuned", recipe={"digest": name})
        found.append(CapabilityBlock(card, factors))
    return found


def same(one: CapabilityBlock, other: CapabilityBlock) -> bool:
    return one.factors.keys() == other.factors.keys() and all(
        torch.equal(f.A, other.factors[s].A)
        and torch.equal(f.B, other.factors[s].B)
        and f.scale == other.factors[s].scale
        for s, f in one.factors.items()
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
class TestTransform:
    def test_blocks_and_model_are_untouched_bit_for_bit(self, file):
        given, base = blocks(), model()
        made(file)(given, base)
        assert all(same(one, other) and one.card == other.card for one, other in zip(given, blocks(), strict=True))
        before, after = model().state_dict(), base.state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
        assert [name for name, _ in base.named_modules()] == [name for name, _ in model().named_modules()]
        assert not any(parameter.requires_grad for parameter in base.parameters()) and not base.training

    def test_names_are_kept_in_their_order(self, file):
        given = [block.card.name for block in blocks()]
        names = [block.card.name for block in made(file)(blocks(), model())]
        assert names == [name for name in given if name in names] and set(given) - set(names) <= {"general"}

    def test_it_is_deterministic_and_no_randomness_is_touched(self, file):
        given = [(blocks(), model()) for _ in range(2)]
        state = torch.get_rng_state()
        one, other = (made(file)(*pair) for pair in given)
        assert all(same(*pair) and pair[0].card == pair[1].card for pair in zip(one, other, strict=True))
        assert torch.equal(torch.get_rng_state(), state)

    def test_the_order_of_the_blocks_is_irrelevant_to_the_last_bit(self, file):
        one = {block.card.name: block for block in made(file)(blocks(), model())}
        other = {block.card.name: block for block in made(file)(blocks()[::-1], model())}
        assert one.keys() == other.keys() and all(same(block, other[name]) for name, block in one.items())

    def test_updates_are_finite_of_the_sites_shapes_and_not_what_they_were(self, file):
        before, changes = {block.card.name: block for block in blocks()}, []
        for block in made(file)(blocks(), model()):
            for site, update in block.factors.items():
                assert (update.A.shape[1], update.B.shape[0]) == WIDTHS[site]
                assert update.delta().isfinite().all()
            changes.append(not same(block, before[block.card.name]))
        assert any(changes)

    def test_cards_say_what_was_done_and_whom_it_was_done_to(self, file):
        before = {block.card.name: block.card for block in blocks()}
        for block in made(file)(blocks(), model()):
            card, old = block.card, before[block.card.name]
            assert (card.origin, card.domain, card.base) == (old.origin, old.domain, old.base)
            assert card.recipe["transform"]["type"].startswith("pmemx.transform.")
            # The digest stands for the old bytes; nobody may find these by it.
            assert "digest" not in card.recipe and card.recipe["of"] == old.recipe
            assert 0 <= card.metrics["relative_change"] < 10

    def test_the_result_loads_in_a_bank(self, file):
        found = made(file)(blocks(), model())
        bank = ExpertBank(found)
        assert bank.names == tuple(block.card.name for block in found)
        for block in found:
            for site, factors in bank.factors(block.card.name).items():
                assert torch.allclose(factors.delta(), block.factors[site].delta(), atol=1e-6)

    def test_the_result_survives_a_peft_folder(self, file, tmp_path):
        for block in made(file)(blocks(), model()):
            again = read_peft_folder(write_peft_folder(block, tmp_path / block.card.name))
            assert again.card.name == block.card.name and again.card.recipe == block.card.recipe
            for site, update in block.factors.items():
                assert torch.equal(again.factors[site].A, update.A) and torch.equal(again.factors[site].B, update.B)
                assert again.factors[site].scale == pytest.approx(update.scale, rel=2**-52)

    def test_half_precision_blocks_give_a_bank_of_one_type(self, file):
        half = [
            CapabilityBlock(
                block.card,
                {site: LoraFactors(f.A.bfloat16(), f.B.bfloat16(), f.scale) for site, f in block.factors.items()},
            )
            for block in blocks()
        ]
        assert len(ExpertBank(made(file)(half, model()))) >= len(half) - 1

    def test_no_block_two_of_one_name_two_bases_and_two_shapes_are_refused(self, file):
        one, other = blocks()[:2]
        with pytest.raises(IncompatibleBlock, match="at least one block"):
            made(file)([], model())
        with pytest.raises(IncompatibleBlock, match="got 'general' twice; rename one"):
            made(file)([one, one], model())
        elsewhere = CapabilityBlock(BlockCard("e1", "d", "elsewhere"), other.factors)
        with pytest.raises(IncompatibleBlock, match="different bases cannot share a bank"):
            made(file)([one, elsewhere], model())
        wider = {"layers.0.q_proj": LoraFactors(torch.ones(1, 25), torch.ones(24, 1), 1.0)}
        with pytest.raises(IncompatibleBlock, match="maps 25 to 24 in e1, but 24 to 24 in another block"):
            made(file)([one, CapabilityBlock(other.card, wider)], model())
