"""Adapter folders: what PEFT wrote comes in and goes out bit for bit; what factors cannot carry is refused."""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.errors import CorruptBlock, IncompatibleBlock, UnsupportedAdapter
from pmemx.core.peft_config import adapted_sites, generated_config, rank_and_scale, refusals
from pmemx.core.peft_folder import CONFIG, WEIGHTS, linear_widths, read_peft_folder, write_peft_folder

LAYER = r".*\.layers\.[01]\.(self_attn\.q_proj|mlp\.down_proj)"
EXPERTS = {
    "plain": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "every linear layer": {"r": 2, "lora_alpha": 3, "target_modules": "all-linear"},
    "rslora": {"r": 3, "lora_alpha": 16, "use_rslora": True, "target_modules": ["up_proj"]},
    "patterns": {
        "r": 4,
        "target_modules": ["up_proj", "down_proj", "q_proj"],
        "rank_pattern": {"up_proj": 7, r"layers\.1\.self_attn\.q_proj": 1},
        "alpha_pattern": {"down_proj": 5, "^model.layers.0.mlp.up_proj": 11},
    },
    "rslora with patterns": {
        "r": 5,
        "use_rslora": True,
        "target_modules": ["k_proj", "gate_proj"],
        "rank_pattern": {"k_proj": 2},
        "alpha_pattern": {"gate_proj": 1},
    },
    "regular expression": {"r": 8, "lora_alpha": 1, "target_modules": LAYER},
    "one layer": {"r": 6, "target_modules": ["o_proj", "up_proj"], "layers_to_transform": [1]},
    "head": {"r": 1, "lora_alpha": 2, "target_modules": ["lm_head"]},
    "excluding": {"r": 2, "target_modules": ["q_proj", "k_proj"], "exclude_modules": ["layers.0.self_attn.k_proj"]},
    "orthogonal": {"r": 4, "target_modules": ["v_proj"], "init_lora_weights": "orthogonal", "lora_dropout": 0.1},
}


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def saved_by_peft(expert: dict, folder: Path, *, adapter: str = "default") -> PeftModel:
    model = get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", **expert), adapter_name=adapter)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return model.eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(24).reshape(2, 12)).logits


@dataclass(frozen=True)
class Saved:
    """A folder that PEFT wrote, and what the model that wrote it computes."""

    folder: Path
    logits: torch.Tensor
    sites: dict[str, tuple[int, float]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Saved]:
    experts = {}
    for kind, expert in EXPERTS.items():
        folder = tmp_path_factory.mktemp("saved")
        model = saved_by_peft(expert, folder)
        layers = {name: m for name, m in model.get_base_model().named_modules() if isinstance(m, LoraLayer)}
        sites = {name: (layer.r["default"], layer.scaling["default"]) for name, layer in layers.items()}
        experts[kind] = Saved(folder, logits(model), sites)
    return experts


@pytest.fixture
def plain(saved: dict[str, Saved], tmp_path: Path) -> Path:
    shutil.copytree(saved["plain"].folder, tmp_path / "plain")
    return tmp_path / "plain"


def with_config(folder: Path, **fields: object) -> Path:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | fields))
    return folder


def with_tensors(folder: Path, **tensors: torch.Tensor | None) -> Path:
    state = safetensors.torch.load_file(folder / WEIGHTS) | tensors
    safetensors.torch.save_file({k: v for k, v in state.items() if v is not None}, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize("kind", EXPERTS)
def test_what_peft_saved_is_written_again_byte_for_byte(kind: str, saved: dict[str, Saved], tmp_path: Path) -> None:
    folder = saved[kind].folder
    out = write_peft_folder(read_peft_folder(folder, widths=linear_widths(llama())), tmp_path / "out")
    assert (out / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert (out / CONFIG).read_bytes() == (folder / CONFIG).read_bytes()


@pytest.mark.parametrize("kind", EXPERTS)
def test_sites_ranks_and_scales_are_those_of_the_live_model(kind: str, saved: dict[str, Saved]) -> None:
    block = read_peft_folder(saved[kind].folder)
    assert {site: (f.rank, f.scale) for site, f in block.factors.items()} == saved[kind].sites
    assert adapted_sites(block.card.peft_config, linear_widths(llama())) == saved[kind].sites.keys()


@pytest.mark.parametrize("kind", EXPERTS)
def test_a_written_folder_gives_the_same_logits_in_peft(kind: str, saved: dict[str, Saved], tmp_path: Path) -> None:
    out = write_peft_folder(read_peft_folder(saved[kind].folder), tmp_path / "out")
    again = PeftModel.from_pretrained(llama(), str(out)).eval()
    assert torch.equal(logits(again), saved[kind].logits)
    assert not torch.equal(logits(again), logits(llama()))


def test_rank_and_scale_by_hand() -> None:
    config = {
        "r": 4, "lora_alpha": 8, "rank_pattern": {"up_proj": 16}, "alpha_pattern": {r"^model\.layers\.1\.up_proj": 4}
    }  # fmt: skip
    assert rank_and_scale(config, "model.layers.0.q_proj") == (4, 2.0)
    assert rank_and_scale(config, "model.layers.0.up_proj") == (16, 0.5)
    assert rank_and_scale(config, "model.layers.1.up_proj") == (16, 0.25)
    assert rank_and_scale(config | {"use_rslora": True}, "model.layers.0.up_proj") == (16, 2.0)
    assert rank_and_scale(config, "model.layers.0.up_proj2") == (4, 2.0)


def test_the_first_matching_pattern_wins_and_survives_the_round_trip(tmp_path: Path) -> None:
    block = CapabilityBlock(
        BlockCard("x", "x", "", peft_config={
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 4, "target_modules": ["up_proj"],
            "rank_pattern": {"up_proj": 2, "layers.0.mlp.up_proj": 3},
        }),
        {f"model.layers.{i}.mlp.up_proj": LoraFactors(torch.ones(2, 32), torch.ones(48, 2), 2.0) for i in (0, 1)},
    )  # fmt: skip
    model = PeftModel.from_pretrained(llama(), str(write_peft_folder(block, tmp_path / "out")))
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    assert isinstance(layer, LoraLayer)
    assert layer.r["default"] == read_peft_folder(tmp_path / "out").factors["model.layers.0.mlp.up_proj"].rank == 2


@given(st.integers(1, 300), st.floats(1e-3, 1e3))
@settings(deadline=None)
def test_a_generated_config_gives_back_rank_and_scale(rank: int, scale: float) -> None:
    sites = {"a.0.x": (rank, scale), "a.1.x": (1, 0.3), "a.2.x": (1, 0.3), "b": (2, 0.5), "a.1.x.y": (rank, 1.0)}
    config = generated_config(sites, base_name="")
    assert refusals(config) == []
    for site, (wanted, value) in sites.items():
        assert rank_and_scale(config, site)[0] == wanted
        assert math.isclose(rank_and_scale(config, site)[1], value, rel_tol=2**-52)


@given(st.integers(1, 64), st.integers(1, 256))
@settings(deadline=None)
def test_a_generated_config_meets_every_scale_that_peft_can_make(rank: int, alpha: int) -> None:
    config = generated_config({"a": (rank, alpha / rank)}, base_name="")
    assert rank_and_scale(config, "a") == (rank, alpha / rank)


def test_a_block_made_by_hand_loads_in_peft(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    widths = {"model.layers.0.mlp.up_proj": (32, 48, 3, 1.5), "model.layers.1.self_attn.k_proj": (32, 16, 1, 0.25)}
    factors = {
        site: LoraFactors(
            torch.randn(r, i, generator=generator), torch.randn(o, r, generator=generator), scale
        )
        for site, (i, o, r, scale) in widths.items()
    }  # fmt: skip
    folder = write_peft_folder(CapabilityBlock(BlockCard("made", "law", "f" * 64), factors), tmp_path / "made")
    model = PeftModel.from_pretrained(llama(), str(folder)).eval()
    by_hand = llama()
    for site, item in factors.items():
        by_hand.get_parameter(f"{site}.weight").data += item.delta()
    torch.testing.assert_close(logits(model), logits(by_hand), atol=1e-5, rtol=0)
    assert read_peft_folder(folder).card == BlockCard(
        "made",
        "law",
        "f" * 64,
        made_by="peft",
        origin="imported",
        peft_config=json.loads((folder / CONFIG).read_text()),
    )


def test_half_precision_is_kept(plain: Path, tmp_path: Path) -> None:
    state = safetensors.torch.load_file(plain / WEIGHTS)
    with_tensors(plain, **{name: tensor.bfloat16() for name, tensor in state.items()})
    out = write_peft_folder(read_peft_folder(plain), tmp_path / "out")
    written = safetensors.torch.load_file(out / WEIGHTS)
    assert all(torch.equal(written[name], state[name].bfloat16()) for name in state)


REFUSED: dict[str, dict] = {
    "use_dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "bias": {"bias": "lora_only"},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "trainable_token_indices": {"trainable_token_indices": [1, 2]},
    "target_parameters": {"target_parameters": ["mlp.experts.down_proj"]},
    "layer_replication": {"layer_replication": [[0, 2], [1, 2]]},
    "alora_invocation_tokens": {"alora_invocation_tokens": [5]},
    "use_qalora": {"use_qalora": True},
    "use_bdlora": {"use_bdlora": {"nblocks": 2}},
    "arrow_config": {"arrow_config": {"top_k": 3}},
    "kasa_config": {"kasa_config": {"beta": 1e-4}},
    "monteclora_config": {"monteclora_config": {"num_samples": 8}},
    "velora_config": {"velora_config": {"num_groups": 64}},
    "megatron_config": {"megatron_config": {"tensor_model_parallel_size": 2}},
    "peft_type": {"peft_type": "LOHA"},
    "prompt and prefix": {"peft_type": "PROMPT_TUNING"},
    "unknown fields": {"use_something_newer": True},
    "r is": {"r": 0},
    "lora_alpha is": {"lora_alpha": float("nan")},
    "not a regular expression": {"rank_pattern": {"(": 4}},
    "rank_pattern": {"rank_pattern": {"q_proj": "4"}},
} | {
    f"init_lora_weights is '{init}'": {"init_lora_weights": init}
    for init in ("pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga", "not_yet_invented")
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_config_beyond_factors_is_refused_by_name(what: str, plain: Path) -> None:
    with pytest.raises(UnsupportedAdapter, match=what):
        read_peft_folder(with_config(plain, **REFUSED[what]))


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "Gaussian", "eva", "orthogonal", "mica"])
def test_an_initial_value_that_leaves_the_base_alone_is_accepted(init: object, plain: Path) -> None:
    assert len(read_peft_folder(with_config(plain, init_lora_weights=init)).factors) == 4


def test_every_field_of_peft_is_either_understood_or_refused() -> None:
    assert refusals(json.loads(json.dumps(LoraConfig(r=4, target_modules=["q_proj"]).to_dict(), default=sorted))) == []


def test_all_reasons_are_listed_at_once(plain: Path) -> None:
    with_tensors(plain, **{"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 64)})
    with pytest.raises(UnsupportedAdapter) as error:
        read_peft_folder(with_config(plain, use_dora=True, bias="all", init_lora_weights="pissa"))
    for reason in ("use_dora", "bias is 'all'", "'pissa'", "adapted embeddings"):
        assert reason in str(error.value)


def test_pissa_saved_unconverted_is_refused_and_converted_is_taken(tmp_path: Path) -> None:
    model = get_peft_model(
        llama(), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights="pissa")
    )
    config = model.peft_config["default"]
    assert isinstance(config, LoraConfig)
    config.init_lora_weights = True
    model.save_pretrained(str(tmp_path / "start"))
    config.init_lora_weights = "pissa"
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1
    model.save_pretrained(str(tmp_path / "raw"))
    with pytest.raises(UnsupportedAdapter, match="path_initial_model_for_weight_conversion"):
        read_peft_folder(tmp_path / "raw")
    trained = logits(model.eval())
    model.save_pretrained(str(tmp_path / "converted"), path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    block = read_peft_folder(tmp_path / "converted")
    by_hand = llama()
    for site, item in block.factors.items():
        by_hand.get_parameter(f"{site}.weight").data += item.delta()
    torch.testing.assert_close(logits(by_hand), trained, atol=1e-5, rtol=0)


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({f"{Q}.lora_B.weight": None}, "q_proj has no B"),
        ({f"{Q}.lora_A.weight": torch.full((4, 32), math.nan)}, "NaN or infinity"),
        ({f"{Q}.lora_B.weight": torch.full((32, 4), math.inf)}, "NaN or infinity"),
        ({f"{Q}.lora_A.weight": torch.ones(3, 32), f"{Q}.lora_B.weight": torch.ones(32, 3)}, "config says rank 4"),
        ({f"{Q}.lora_A.weight": torch.ones(4, 32, 1, 1)}, "convolution"),
        ({f"{Q}.lora_A.weight": torch.ones(4, 32, dtype=torch.int32)}, "stored as"),
        ({f"{Q}.lora_B.bias": torch.ones(32)}, "left over"),
        ({f"{Q}.lora_A.default.weight": torch.ones(4, 32)}, "left over"),
        ({f"{Q}.lora_magnitude_vector": torch.ones(32)}, "DoRA"),
        ({"base_model.model.lm_head.weight": torch.ones(64, 32)}, "save_embedding_layers=False"),
        ({"../../etc/passwd": torch.ones(1)}, "left over"),
    ],
)
def test_a_wrong_tensor_is_refused(tensors: dict, reason: str, plain: Path) -> None:
    with pytest.raises(UnsupportedAdapter, match=reason):
        read_peft_folder(with_tensors(plain, **tensors))


def test_tensors_that_peft_drops_without_a_word_are_noticed_beside_the_base(tmp_path: Path) -> None:
    model = saved_by_peft(EXPERTS["plain"], tmp_path / "alone", adapter="0")
    model.add_adapter("1", LoraConfig(task_type="CAUSAL_LM", **EXPERTS["plain"]))
    model.save_pretrained(str(tmp_path))
    assert len(read_peft_folder(tmp_path / "alone" / "0", widths=linear_widths(llama())).factors) == 4
    with pytest.raises(UnsupportedAdapter, match="no tensors"):
        read_peft_folder(tmp_path / "0", widths=linear_widths(llama()))


def test_a_base_of_other_shapes_is_refused(plain: Path) -> None:
    with pytest.raises(UnsupportedAdapter, match="choose its own base"):
        read_peft_folder(plain, widths={name: (i + 1, o) for name, (i, o) in linear_widths(llama()).items()})
    with pytest.raises(UnsupportedAdapter, match="no linear layer of the base"):
        read_peft_folder(plain, widths={"model.layers.0.self_attn.q_proj": (32, 32)})


def test_a_base_of_the_same_shapes_is_told_apart_by_the_passport(plain: Path, tmp_path: Path) -> None:
    out = write_peft_folder(read_peft_folder(plain, base="a" * 64), tmp_path / "out")
    assert read_peft_folder(out).card.base == "a" * 64
    assert read_peft_folder(out, base="a" * 64).card.base == "a" * 64
    with pytest.raises(IncompatibleBlock, match="was made on base aaaaaaaaaaaa"):
        read_peft_folder(out, base="b" * 64)


def test_a_pickle_is_refused_and_never_opened(plain: Path) -> None:
    (plain / WEIGHTS).unlink()
    # Whoever unpickles this creates the file "opened".
    (plain / "adapter_model.bin").write_bytes(b"cpathlib\nPath\n(S'" + str(plain / "opened").encode() + b"'\ntR.")
    with pytest.raises(UnsupportedAdapter, match=r"adapter_model\.bin"):
        read_peft_folder(plain)
    assert not (plain / "opened").exists()


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_file_is_corrupt(keep: int, plain: Path) -> None:
    (plain / WEIGHTS).write_bytes((plain / WEIGHTS).read_bytes()[:keep])
    with pytest.raises(CorruptBlock, match="not a whole safetensors file"):
        read_peft_folder(plain)


def test_unreadable_and_missing_configs_are_errors(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedAdapter, match="name one of its folders: plain"):
        read_peft_folder(tmp_path)
    (plain / CONFIG).write_text("[1, 2]")
    with pytest.raises(CorruptBlock, match="not an object"):
        read_peft_folder(plain)
    (plain / CONFIG).write_text("{")
    with pytest.raises(CorruptBlock, match="not JSON"):
        read_peft_folder(plain)


def test_an_empty_adapter_is_refused(plain: Path) -> None:
    safetensors.torch.save_file({}, plain / WEIGHTS)
    with pytest.raises(UnsupportedAdapter, match="no A and B at all"):
        read_peft_folder(plain)


def test_a_config_that_does_not_describe_the_factors_is_not_written(plain: Path, tmp_path: Path) -> None:
    block = read_peft_folder(plain)
    doubled = {site: LoraFactors(item.A, item.B, 2 * item.scale) for site, item in block.factors.items()}
    with pytest.raises(IncompatibleBlock, match=r"clear card\.peft_config"):
        write_peft_folder(CapabilityBlock(block.card, doubled), tmp_path / "out")
    assert not (tmp_path / "out").exists()
