"""A bank: every expert in its slot, a swap that touches nothing else, and bytes that are those of the factors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pmemx.core.bank import ExpertBank
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.errors import CorruptBlock, IncompatibleBlock, UnknownBlock

WIDTHS = {"layers.0.up": (256, 384), "layers.0.down": (384, 256), "layers.10.up": (256, 384), "layers.2.up": (256, 384)}


def block(number: int, *, name: str = "", base: str = "", rank: int = 0, sites=tuple(WIDTHS), dtype=torch.float32):
    """Expert `number`: its own rank and scale; every third leaves out a site."""
    generator = torch.Generator().manual_seed(number)
    used = [site for site in sites if number % 3 or site != "layers.2.up"]
    rank = rank or 1 + number % 4
    factors = {}
    for site in used:
        width_in, width_out = WIDTHS[site]
        A = torch.randn(rank, width_in, generator=generator, dtype=dtype)
        B = torch.randn(width_out, rank, generator=generator, dtype=dtype)
        factors[site] = LoraFactors(A, B, scale=0.5 + number / 4)
    return CapabilityBlock(
        BlockCard(name=name or f"e{number}", domain="d", base=base, peft_config={"r": number % 2}), factors
    )


def deltas(bank: ExpertBank, name: str) -> dict[str, torch.Tensor]:
    return {site: factors.delta() for site, factors in bank.factors(name).items()}


@pytest.fixture
def blocks():
    return [block(number) for number in range(8)]  # e0, e3 and e6 leave out a site


def test_every_expert_keeps_its_own_update(blocks):
    bank = ExpertBank(blocks)
    for expert in blocks:
        found = deltas(bank, expert.card.name)
        assert found.keys() == expert.factors.keys()
        for site, factors in expert.factors.items():
            assert torch.allclose(found[site], factors.delta(), rtol=1e-5, atol=1e-5)


def test_the_state_dict_has_two_entries_a_site_however_many_experts(blocks):
    for number in (1, 7):
        assert len(ExpertBank(blocks[1 : 1 + number]).state_dict()) == 2 * len(WIDTHS)


def test_a_resident_bank_is_as_large_as_its_raw_factors():
    experts = [block(number) for number in range(32)]
    bank = ExpertBank(experts)
    raw = 4 * sum(expert.num_parameters for expert in experts)
    tensors = [*bank.state_dict().values()]
    for _, site in bank.items():
        tensors += [site.layout.owner, site.layout.place, site.layout.rows, site.layout.real]
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    assert raw <= sum(held.values()) <= 1.01 * raw


def test_all_sites_are_views_of_one_store_and_stay_so_when_the_bank_moves(blocks):
    bank = ExpertBank(blocks)
    for moved in (bank, bank.to(torch.bfloat16), bank.to(torch.float64)):
        assert len({tensor.untyped_storage().data_ptr() for tensor in moved.state_dict().values()}) == 1
    assert bank.dtype == torch.float64


def test_a_swap_writes_its_slot_and_nothing_else(blocks):
    bank = ExpertBank(blocks)
    before = {name: {site: delta.clone() for site, delta in deltas(bank, name).items()} for name in bank.names}
    stores = {tensor.data_ptr() for tensor in bank.state_dict().values()}
    bank.swap("e3", block(24, rank=2))
    assert {tensor.data_ptr() for tensor in bank.state_dict().values()} == stores
    for name in bank.names:
        if name != "e3":
            assert all(torch.equal(delta, before[name][site]) for site, delta in deltas(bank, name).items())
    for site, factors in block(24, rank=2).factors.items():
        assert torch.allclose(deltas(bank, "e3")[site], factors.delta(), rtol=1e-5, atol=1e-5)
    # A smaller rank leaves no trace of the larger one.
    layout = dict(bank.items())["layers.0.up"].layout
    rows = slice(layout.starts[3] + 2, layout.starts[3] + layout.room[3])
    assert not dict(bank.items())["layers.0.up"].A[rows].any()


def test_swapping_back_restores_the_bytes(blocks):
    bank = ExpertBank(blocks)
    before = {key: value.clone() for key, value in bank.state_dict().items()}
    bank.swap("e3", block(6, rank=1))
    bank.swap("e3", blocks[3])
    assert all(torch.equal(value, before[key]) for key, value in bank.state_dict().items())


def test_a_refused_swap_changes_nothing(blocks):
    bank = ExpertBank(blocks)
    before = {key: value.clone() for key, value in bank.state_dict().items()}
    for wrong, message in (
        (block(3, rank=9), "has rank 9, the slot has room for 4"),
        (block(3, base="b" * 64), "trained on base"),
        (CapabilityBlock(block(1).card, {"other": block(1).factors["layers.0.up"]}), "no expert of this bank does"),
        (CapabilityBlock(block(1).card, {"layers.0.up": block(1).factors["layers.0.down"]}), "has widths"),
    ):
        with pytest.raises(IncompatibleBlock, match=message):
            bank.swap("e3", wrong)
    assert all(torch.equal(value, before[key]) for key, value in bank.state_dict().items())
    assert bank.residents[3].revision == 4


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_a_bank_on_another_device_takes_blocks_from_the_processor(blocks, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    bank = ExpertBank(blocks).to(device)
    bank.swap("e3", block(24, rank=2))
    assert dict(bank.items())["layers.0.up"].ranks == [1, 2, 3, 2, 1, 2, 3, 4]
    if device != "meta":
        assert_holds(bank, "e3", block(24, rank=2), torch.float32)


def assert_holds(bank: ExpertBank, name: str, expert: CapabilityBlock, wide: torch.dtype) -> None:
    """The bank holds exactly what a product in the wide type gives, rounded to the bank's."""
    for site, factors in expert.factors.items():
        found = bank.factors(name)[site]
        assert torch.equal(found.A.cpu(), factors.A.to(bank.dtype))
        assert torch.equal(found.B.cpu(), (factors.B.to(wide) * factors.scale).to(bank.dtype))


@pytest.mark.parametrize("given", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_scaled_factors_are_rounded_once_to_the_type_of_the_bank(given, dtype):
    expert = block(1, dtype=torch.float64)
    thirds = {s: LoraFactors(f.A.to(given), f.B.to(given), 1 / 3) for s, f in expert.factors.items()}
    expert = CapabilityBlock(expert.card, thirds)
    assert_holds(ExpertBank([expert], dtype=dtype), "e1", expert, torch.promote_types(given, torch.float32))


@pytest.mark.parametrize(
    ("slot", "change"),
    [
        (3, lambda bank: bank.swap("e3", block(24, rank=2))),
        (3, lambda bank: bank.unload("e3")),
        (8, lambda bank: bank.load(block(11))),
    ],
    ids=["swap", "unload", "load"],
)
def test_a_write_that_breaks_off_leaves_its_slot_free(blocks, monkeypatch, slot, change):
    bank = ExpertBank(blocks, spare=1)
    second, writes = [site for _, site in bank.items()][1], bank.writes

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(second, "write", fail)
        with pytest.raises(torch.OutOfMemoryError):
            change(bank)
    assert bank.writes == writes + 1
    assert bank.residents[slot] is None
    again = (*blocks, block(11))[slot]
    assert bank.load(again) == slot
    assert_holds(bank, again.card.name, again, torch.float32)


def test_free_slots_take_experts_and_give_them_back(blocks):
    bank = ExpertBank(blocks, spare=1)
    assert len(bank) == 9 and len(bank.names) == 8
    assert bank.slot_names == (*bank.names, "free slot 8")
    assert bank.load(block(11), name="late", version="late@2") == 8
    assert bank.names[-1] == "late" and bank.residents[8].version == "late@2"
    with pytest.raises(IncompatibleBlock, match="no free slot for 'e12': all 9 slots are taken; unload an expert"):
        bank.load(block(12))
    assert bank.unload("e2") == 2
    assert bank.slot_names == ("e0", "e1", "free slot 2", "e3", "e4", "e5", "e6", "e7", "late")
    for _, site in bank.items():
        rows = slice(site.layout.starts[2], site.layout.starts[2] + site.layout.room[2])
        assert not site.A[rows].any() and not site.B[rows].any()
    with pytest.raises(UnknownBlock, match="no expert 'e2' in this bank; there are e0, e1, e3"):
        bank.slot("e2")
    with pytest.raises(IncompatibleBlock, match="has rank 4, the slot has room for 3"):
        bank.load(block(15))
    assert bank.load(block(14)) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_bank_is_mapped_and_equal(blocks, tmp_path, dtype):
    bank = ExpertBank(blocks, spare=2, dtype=dtype, versions=[f"v{n}" for n in range(8)])
    bank.save(tmp_path / "bank.safetensors")
    opened = ExpertBank.open(tmp_path / "bank.safetensors")
    assert opened.names == bank.names and opened.base == bank.base and opened.dtype == dtype
    assert [r and (r.card, r.version) for r in opened.residents] == [r and (r.card, r.version) for r in bank.residents]
    for name in bank.names:
        for site, delta in deltas(bank, name).items():
            assert torch.equal(delta, deltas(opened, name)[site])
    bytes_before = (tmp_path / "bank.safetensors").read_bytes()
    opened.swap("e1", block(9, rank=1))
    opened.load(block(10))
    assert (tmp_path / "bank.safetensors").read_bytes() == bytes_before


def test_an_opened_bank_has_its_sites_in_the_order_in_which_they_were_saved(tmp_path):
    """Gates know a site by its number. Neither is this the order of the names, nor are A and B of "up" neighbours in the file."""
    sites = ["up", *(f"layers.{number}.up" for number in range(12)), "layers.1-shared.up", "up.A-side"]
    generator = torch.Generator().manual_seed(0)
    experts = []
    for number in range(2):
        factors = {
            site: LoraFactors(
                torch.randn(1 + (i + number) % 3, 4, generator=generator),
                torch.randn(6, 1 + (i + number) % 3, generator=generator),
                0.5,
            )
            for i, site in enumerate(sites)
        }
        experts.append(CapabilityBlock(BlockCard(name=f"e{number}", domain="d", base=""), factors))
    bank = ExpertBank(experts)
    bank.save(tmp_path / "bank.safetensors")
    opened = ExpertBank.open(tmp_path / "bank.safetensors")
    opened.save(tmp_path / "again.safetensors")
    again = ExpertBank.open(tmp_path / "again.safetensors")
    assert [*bank.shape(4).sites] == sites
    for other in (opened, again, again.to(torch.float64), again.to(torch.float32)):
        assert other.shape(4) == bank.shape(4)
        assert [site.number for _, site in other.items()] == [*range(len(sites))]
        assert len({tensor.untyped_storage().data_ptr() for tensor in other.state_dict().values()}) == 1
        for key, value in bank.state_dict().items():
            assert torch.equal(other.state_dict()[key].float(), value)
        for name in bank.names:
            ours, theirs = bank.factors(name), other.factors(name)
            assert [*ours] == [*theirs]
            assert all(torch.equal(ours[site].A, theirs[site].A.float()) for site in sites)


def test_a_file_that_is_no_bank_is_refused(blocks, tmp_path):
    path = tmp_path / "bank.safetensors"
    ExpertBank(blocks).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptBlock, match="not a whole safetensors file"):
        ExpertBank.open(path)
    path.write_bytes(whole.replace(b"bank-3", b"bank-9"))
    with pytest.raises(CorruptBlock, match="holds no bank of this format"):
        ExpertBank.open(path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "at least one block"),
        ([block(1), block(1)], "unique"),
        ([block(1, base="a" * 64), block(2, base="b" * 64)], "different bases"),
        ([block(1), block(2, dtype=torch.bfloat16)], "mix torch.bfloat16, torch.float32; say which"),
    ],
    ids=["none", "names", "bases", "dtypes"],
)
def test_blocks_that_cannot_share_a_bank_are_refused(wrong, message):
    with pytest.raises(IncompatibleBlock, match=message):
        ExpertBank(wrong)


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(["load", "unload", "swap"]), st.integers(0, 11)), max_size=20))
def test_whatever_is_loaded_and_unloaded_the_bank_holds_what_a_dictionary_would(steps):
    bank, model = ExpertBank([block(1, rank=4), block(2, rank=4)], spare=2, room=4), {"e1": (1, 4), "e2": (2, 4)}
    for verb, number in steps:
        name = f"e{number}"
        if verb == "load" and name not in model and len(model) < 4 and len(bank.names) < 4:
            bank.load(block(number))
            model[name] = (number, 0)
        elif verb == "unload" and name in model and len(model) > 1:
            bank.unload(name)
            del model[name]
        elif verb == "swap" and name in model:
            bank.swap(name, block(number + 20))
            model[name] = (number + 20, 0)
    assert set(bank.names) == set(model)
    for name, (number, rank) in model.items():
        for site, factors in block(number, rank=rank).factors.items():
            assert torch.allclose(deltas(bank, name)[site], factors.delta(), rtol=1e-5, atol=1e-5)
