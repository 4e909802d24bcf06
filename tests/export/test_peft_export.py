"""PEFT export: import, store and export lose nothing; the portable form computes the same with alpha = r."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.errors import ConfigError, CorruptBlock, IncompatibleBlock
from pmemx.core.peft_folder import CONFIG, WEIGHTS, read_peft_folder
from pmemx.export.peft import INDEX, VERSION, PeftExport, folder_name, portable
from pmemx.store.governed import GovernedStore
from pmemx.store.leaving import leave

# Free-text names, among them those that make PEFT drop tensors and those that would leave the folder as paths.
EXPERTS = {
    "0": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "mlp": {"r": 2, "lora_alpha": 3, "target_modules": "all-linear"},
    "../law": {"r": 3, "lora_alpha": 16, "use_rslora": True, "target_modules": ["up_proj"]},
    "médecine ☃": {
        "r": 4,
        "target_modules": ["up_proj", "down_proj"],
        "rank_pattern": {"up_proj": 7},
        "alpha_pattern": {"down_proj": 5, "^model.layers.0.mlp.up_proj": 11},
    },
    "lora_A": {
        "r": 5,
        "use_rslora": True,
        "target_modules": ["k_proj", "gate_proj"],
        "rank_pattern": {"k_proj": 2},
        "alpha_pattern": {"gate_proj": 1},
    },
    "Law": {"r": 8, "lora_alpha": 1, "target_modules": r".*\.layers\.[01]\.self_attn\.o_proj"},
    "law": {"r": 6, "lora_alpha": 7, "target_modules": ["o_proj", "up_proj"], "layers_to_transform": [1]},
    "1": {"r": 1, "lora_alpha": 2, "target_modules": ["q_proj"], "lora_dropout": 0.2},
    "☃": {"r": 4, "lora_alpha": 5, "target_modules": ["v_proj"], "init_lora_weights": "orthogonal"},
}


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(24).reshape(2, 12)).logits


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, torch.Tensor]]:
    """Adapter folders as PEFT saved them, with the logits of the models that saved them."""
    saved = {}
    for number, (name, expert) in enumerate(EXPERTS.items()):
        model = get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", **expert))
        torch.manual_seed(number)
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                nn.init.normal_(parameter, std=0.1)
        folder = tmp_path_factory.mktemp("saved")
        model.save_pretrained(str(folder))
        saved[name] = (folder, logits(model.eval()))
    return saved


def in_store(imported: dict[str, tuple[Path, torch.Tensor]], path: Path, *, namespace: str = "shared") -> GovernedStore:
    store = GovernedStore(path, namespace=namespace)
    for name, (folder, _) in imported.items():
        store.put(read_peft_folder(folder, name=name, base="b" * 64, base_name="tiny"))
    return store


def test_import_store_export_gives_back_every_byte_and_every_logit(imported, tmp_path: Path) -> None:
    store = in_store(imported, tmp_path / "bank")
    blocks = [store.get(name) for name in imported]
    paths = PeftExport().export(blocks, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "index.json").read_text(encoding="utf-8"))
    assert list(index) == list(imported)
    assert [index[name]["folder"] for name in imported] == [path.name for path in paths]
    assert {entry["base"] for entry in index.values()} == {"b" * 64}
    for path, (folder, expected) in zip(paths, imported.values(), strict=True):
        assert path.parent == tmp_path / "out"
        assert (path / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
        assert (path / CONFIG).read_bytes() == (folder / CONFIG).read_bytes()
        assert torch.equal(logits(PeftModel.from_pretrained(llama(), str(path)).eval()), expected)


def test_an_exported_folder_is_imported_as_the_block_it_was(imported, tmp_path: Path) -> None:
    store = in_store(imported, tmp_path / "bank")
    for name in imported:
        (path,) = PeftExport().export([store.get(name)], tmp_path / "out")
        assert store.put(read_peft_folder(path)) == store.find(name)


def read_index(folder: Path) -> dict[str, dict[str, object]]:
    return json.loads((folder / INDEX).read_text(encoding="utf-8"))


def test_a_second_export_into_a_folder_keeps_what_the_first_left_and_each_tells_its_version(imported, tmp_path: Path):
    store, out = in_store(imported, tmp_path / "bank"), tmp_path / "out"
    first, second = list(imported)[:2]
    for name in (first, second):
        PeftExport().export([store.get(name)], out, versions=[store.find(name)])
    assert list(read_index(out)) == [first, second]
    for name, entry in read_index(out).items():
        told = {"namespace": "shared", "version": 1, "digest": store.find(name).digest}
        assert entry == {"folder": folder_name(name), "base": "b" * 64, "base_name": "tiny", **told}
        assert json.loads((out / folder_name(name) / VERSION).read_text()) == told
    # A newer version takes the place of the older one, and what was deleted is listed no more.
    changed = store.get(first)
    store.put(replace(changed, card=replace(changed.card, licence="mit")))
    shutil.rmtree(out / folder_name(second))
    PeftExport().export([store.get(first)], out, versions=[store.find(first)])
    assert [(name, entry["version"]) for name, entry in read_index(out).items()] == [(first, 2)]
    assert store.put(read_peft_folder(out / folder_name(first))) == store.find(first), "an import knows nothing of it"
    PeftExport().export([store.get(first)], out)
    assert not (out / folder_name(first) / VERSION).exists() and "digest" not in read_index(out)[first]


def test_a_block_of_another_namespace_does_not_take_the_place_of_one_of_the_same_name(imported, tmp_path: Path):
    name = next(iter(imported))
    store, out = in_store(imported, tmp_path / "bank"), tmp_path / "out"
    theirs = in_store(imported, tmp_path / "bank", namespace="team:legal")
    PeftExport().export([store.get(name)], out, versions=[store.find(name)])
    before = read_index(out)
    with pytest.raises(ConfigError, match=f"holds block '{name}' of shared already, and this one is of team:legal"):
        PeftExport().export([theirs.get(name)], out, versions=[theirs.find(name)])
    assert read_index(out) == before and (out / folder_name(name) / VERSION).exists()


def test_a_redacted_version_is_exported_without_its_namespace(imported, tmp_path: Path):
    name = next(iter(imported))
    store = in_store(imported, tmp_path / "bank", namespace="team:legal")
    (one,) = leave(store.bank, [name], redacted=True)
    (path,) = PeftExport().export([one.block], tmp_path / "out", versions=[one.version])
    told = json.loads((path / VERSION).read_text())
    assert told == {"version": 1, "digest": one.digest} and one.digest != store.find(name).digest
    assert "legal" not in (tmp_path / "out" / INDEX).read_text()


@pytest.mark.parametrize("text", ["", "[]", '{"law": "folder"}', '{"law": {}}'])
def test_an_index_that_is_none_is_refused_and_not_overwritten(imported, tmp_path: Path, text: str):
    store = in_store(imported, tmp_path / "bank")
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CorruptBlock, match=r"index.json is no index of an export .* export into another folder"):
        PeftExport().export([store.get(next(iter(imported)))], tmp_path)
    assert (tmp_path / INDEX).read_text() == text


def test_the_portable_form_gives_the_same_logits_without_rslora_and_patterns(imported, tmp_path: Path) -> None:
    blocks = [read_peft_folder(folder, name=name) for name, (folder, _) in imported.items()]
    for path, (_, expected) in zip(PeftExport(portable=True).export(blocks, tmp_path), imported.values(), strict=True):
        config = json.loads((path / CONFIG).read_text())
        assert config["lora_alpha"] == config["r"]
        assert (config["use_rslora"], config["rank_pattern"], config["alpha_pattern"]) == (False, {}, {})
        ranks = {
            tensor.shape[0 if "lora_A" in name else 1]
            for name, tensor in safetensors.torch.load_file(path / WEIGHTS).items()
        }
        assert ranks == {config["r"]}
        model = PeftModel.from_pretrained(llama(), str(path)).eval()
        torch.testing.assert_close(logits(model), expected, atol=1e-6, rtol=0)


def test_the_portable_form_of_a_portable_block_is_itself(imported) -> None:
    folder, _ = imported["lora_A"]
    once = portable(read_peft_folder(folder))
    twice = portable(once)
    assert twice.card == once.card
    for site, factors in once.factors.items():
        assert (factors.scale, twice.factors[site].scale) == (1.0, 1.0)
        assert torch.equal(twice.factors[site].A, factors.A)
        assert torch.equal(twice.factors[site].B, factors.B)


@given(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), st.floats(0.01, 10), st.integers(1, 4))
@settings(deadline=None)
def test_folding_the_scale_keeps_the_update(dtype: torch.dtype, scale: float, rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    A, B = torch.randn(rank, 5, generator=generator), torch.randn(6, rank, generator=generator)
    wide = LoraFactors(torch.ones(4, 5), torch.ones(6, 4), 1.0)
    block = CapabilityBlock(BlockCard("x", "x", ""), {"a": LoraFactors(A.to(dtype), B.to(dtype), scale), "b": wide})
    after = portable(block).factors["a"]
    assert after.rank == 4
    expected = scale * (B.to(dtype).double() @ A.to(dtype).double())
    torch.testing.assert_close(after.B.double() @ after.A.double(), expected, atol=1e-5, rtol=1e-6)


def test_a_scale_that_is_a_power_of_two_keeps_half_precision() -> None:
    factors = LoraFactors(torch.ones(1, 2).bfloat16(), torch.full((2, 1), 3.0).bfloat16(), 0.5)
    after = portable(CapabilityBlock(BlockCard("x", "x", ""), {"a": factors})).factors["a"]
    assert after.B.dtype == after.A.dtype == torch.bfloat16
    assert after.B.tolist() == [[1.5], [1.5]]


def test_a_block_made_by_hand_is_exported_too(tmp_path: Path) -> None:
    block = CapabilityBlock(
        BlockCard("made", "x", ""),
        {"model.layers.1.mlp.up_proj": LoraFactors(torch.ones(2, 32), torch.ones(48, 2), 0.3)},
    )
    (path,) = PeftExport().export([block], tmp_path)
    assert read_peft_folder(path).factors["model.layers.1.mlp.up_proj"].scale == 0.3


@given(st.text(min_size=1), st.text(min_size=1))
@settings(deadline=None)
def test_folder_names_are_safe_and_differ_with_the_name(one: str, other: str) -> None:
    for name in (one, other):
        assert folder_name(name).replace("-", "").isalnum()
        assert folder_name(name).isascii()
        assert len(folder_name(name)) < 60
    assert (folder_name(one) == folder_name(other)) == (one == other)


def test_folder_names_by_hand() -> None:
    assert folder_name("Law & Order").startswith("law-order-")
    assert folder_name("☃").startswith("expert-")
    assert folder_name("law") != folder_name("Law")


def test_two_blocks_of_one_name_are_refused_before_anything_is_written(imported, tmp_path: Path) -> None:
    block = read_peft_folder(imported["0"][0], name="0")
    with pytest.raises(IncompatibleBlock, match="a folder of its own"):
        PeftExport().export([block, replace(block)], tmp_path / "out")
    assert not (tmp_path / "out").exists()
