"""Injecting and extracting LoRA: PEFT's own adapter, an untouched base, no trace in the global generator."""

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from pmemx.adapter.lora import Lora
from pmemx.core.block import BlockCard, CapabilityBlock
from pmemx.core.digest import fingerprint
from pmemx.core.errors import ConfigError, IncompatibleBlock
from pmemx.core.factor_file import key
from pmemx.core.peft_folder import read_peft_folder, write_peft_folder


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


def train(adapted: nn.Module, steps: int = 3) -> None:
    adapted.train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.02)
    for _ in range(steps):
        ids = torch.arange(24).reshape(2, 12)
        adapted(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.eval()


ADAPTERS = {
    "default": Lora(),
    "rslora": Lora(rank=3, alpha=4.0, use_rslora=True),
    "gaussian": Lora(rank=2, init="gaussian", target_modules=("q_proj", "v_proj")),
    "orthogonal": Lora(rank=4, init="orthogonal", target_modules=r".*\.mlp\.up_proj"),
    "patterns": Lora(
        target_modules=["up_proj", "down_proj"], rank_pattern={"up_proj": 6}, alpha_pattern={"down_proj": 0.5}
    ),
    "one layer": Lora(target_modules=["k_proj", "up_proj"], layers_to_transform=[1]),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_same_seed_gives_peft_s_own_initial_factors(kind: str) -> None:
    ours, _ = ADAPTERS[kind].extract(ADAPTERS[kind].inject(llama(), seed=7))
    peft_config = ADAPTERS[kind]._config()
    base = llama()
    torch.manual_seed(7)
    theirs = get_peft_model_state_dict(get_peft_model(base, peft_config))
    assert {key(site, "A") for site in ours} | {key(site, "B") for site in ours} == theirs.keys()
    for site, factors in ours.items():
        assert torch.equal(factors.A, theirs[key(site, "A")])
        assert torch.equal(factors.B, theirs[key(site, "B")])


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_extracted_block_gives_the_adapted_model_s_logits_in_peft(kind: str, tmp_path) -> None:
    adapted = ADAPTERS[kind].inject(llama(), seed=0)
    train(adapted)
    factors, config = ADAPTERS[kind].extract(adapted)
    block = CapabilityBlock(BlockCard("x", "x", "", peft_config=config), factors)
    folder = write_peft_folder(block, tmp_path / "x")
    assert torch.equal(logits(PeftModel.from_pretrained(llama(), str(folder)).eval()), logits(adapted))
    assert read_peft_folder(folder).card.peft_config == config


def test_the_config_is_the_one_that_peft_saves(tmp_path) -> None:
    adapted = Lora(rank=2, target_modules=["v_proj", "q_proj"]).inject(llama(), seed=0)
    assert isinstance(adapted, PeftModel)
    adapted.save_pretrained(str(tmp_path))
    (name,) = adapted.peft_config
    theirs = dict(read_peft_folder(tmp_path / name).card.peft_config)
    _, ours = Lora(rank=2, target_modules=["v_proj", "q_proj"]).extract(adapted)
    assert ours["target_modules"] == ["q_proj", "v_proj"]
    assert ours == theirs | {"target_modules": sorted(theirs["target_modules"])}
    assert list(ours) == list(theirs)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_removing_gives_back_the_base_bit_for_bit(kind: str) -> None:
    base = llama()
    before, identity, names = logits(base), fingerprint(base), list(base.state_dict())
    adapted = ADAPTERS[kind].inject(base, seed=0)
    train(adapted)
    assert not torch.equal(logits(adapted), before)
    removed = ADAPTERS[kind].remove(adapted)
    assert removed is base
    assert torch.equal(logits(removed), before)
    assert fingerprint(removed) == identity
    assert list(removed.state_dict()) == names


def test_a_second_adapter_can_be_injected_after_the_first_is_removed() -> None:
    base = llama()
    first, _ = Lora().extract(Lora().inject(base, seed=1))
    # the same seed after a removal starts from the same factors
    adapted = Lora().inject(base, seed=2)
    second, _ = Lora().extract(Lora().inject(Lora().remove(adapted), seed=1))
    assert all(torch.equal(first[site].A, second[site].A) for site in first)


@pytest.mark.parametrize("init", ["default", "gaussian", "orthogonal"])
def test_before_training_the_adapted_model_computes_what_the_base_computes(init) -> None:
    torch.testing.assert_close(logits(Lora(init=init).inject(llama(), seed=3)), logits(llama()), atol=1e-5, rtol=0)


def test_injection_does_not_move_the_global_generator_and_does_not_read_it() -> None:
    model, other = llama(), llama()
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one, _ = Lora().extract(Lora().inject(model, seed=11))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(6)
    two, _ = Lora().extract(Lora().inject(other, seed=11))
    three, _ = Lora().extract(Lora().inject(llama(), seed=12))
    assert all(torch.equal(one[site].A, two[site].A) for site in one)
    assert not any(torch.equal(one[site].A, three[site].A) for site in one)


def test_only_float32_adapter_weights_are_trainable_even_on_a_bfloat16_base() -> None:
    adapted = Lora().inject(llama().bfloat16(), seed=0)
    trainable = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(trainable) == 28
    assert all(".lora_" in name and p.dtype == torch.float32 for name, p in trainable.items())


def test_the_internal_name_is_no_part_of_a_module_s_name() -> None:
    adapted = Lora().inject(llama(), seed=0)
    assert isinstance(adapted, PeftModel)
    (name,) = adapted.peft_config
    assert name.startswith("px")
    assert name not in {part for path, _ in llama().named_modules() for part in path.split(".")}
    base = llama()
    base.add_module(name, nn.Identity())  # the very name that this seed would give
    renamed = Lora().inject(base, seed=0)
    assert isinstance(renamed, PeftModel)
    assert name not in renamed.peft_config


def test_extracted_factors_are_copies() -> None:
    adapted = Lora().inject(llama(), seed=0)
    factors, _ = Lora().extract(adapted)
    before = {site: item.A.clone() for site, item in factors.items()}
    train(adapted)
    assert all(torch.equal(factors[site].A, before[site]) for site in before)


def test_restored_factors_continue_the_training_of_the_adapter_they_came_from() -> None:
    adapted = Lora().inject(llama(), seed=0)
    train(adapted)
    factors, _ = Lora().extract(adapted)
    again = Lora().inject(llama(), seed=99)
    Lora().restore(again, factors)
    assert torch.equal(logits(again), logits(adapted))
    train(again, steps=1)
    train(adapted, steps=1)
    assert torch.equal(logits(again), logits(adapted))


def test_factors_of_other_sites_ranks_or_scales_are_not_restored() -> None:
    factors, _ = Lora().extract(Lora().inject(llama(), seed=0))
    with pytest.raises(IncompatibleBlock, match="differ in 10 sites"):
        Lora().restore(Lora(target_modules=["q_proj", "v_proj"]).inject(llama(), seed=0), factors)
    for other in (Lora(rank=8), Lora(alpha=1.0)):
        with pytest.raises(IncompatibleBlock, match="shapes and scale"):
            Lora().restore(other.inject(llama(), seed=0), factors)


def test_extraction_keeps_the_order_of_patterns_that_overlap() -> None:
    patterns = {"up_proj": 2, "layers.0.mlp.up_proj": 3}
    adapter = Lora(target_modules=["up_proj"], rank_pattern=patterns)
    factors, config = adapter.extract(adapter.inject(llama(), seed=0))
    assert {item.rank for item in factors.values()} == {2}
    assert list(config["rank_pattern"]) == list(patterns)


def test_a_target_that_the_model_does_not_have_is_an_early_error() -> None:
    model = llama()
    with pytest.raises(ConfigError, match="'q_porj'; did you mean 'q_proj'"):
        Lora(target_modules=["v_proj", "q_porj"]).inject(model, seed=0)
    with pytest.raises(ConfigError, match="'c_attn'; there are"):
        Lora(target_modules=["c_attn"]).inject(model, seed=0)
    with pytest.raises(ConfigError, match="no linear layer"):
        Lora(target_modules="embed_tokens").inject(model, seed=0)
    with pytest.raises(ConfigError, match="leaves no layer"):
        Lora(target_modules=["q_proj"], layers_to_transform=[7]).inject(model, seed=0)
    with pytest.raises(ConfigError, match="rank_pattern: 'upproj'"):
        Lora(rank_pattern={"upproj": 2}).inject(model, seed=0)
    assert fingerprint(model) == fingerprint(llama())


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"rank": 0}, "at least 1"),
        ({"rank": 3, "init": "orthogonal"}, "even"),
        ({"dropout": 1.0}, "below 1"),
        ({"layers_to_transform": [0]}, "list of name endings"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(settings: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Lora(**settings)


def test_scale_by_hand() -> None:
    (factors, _), (stable, _) = (a.extract(a.inject(llama(), 0)) for a in (Lora(), Lora(rank=16, use_rslora=True)))
    assert {item.scale for item in factors.values()} == {2.0}
    assert {item.scale for item in stable.values()} == {2.0}


def test_all_linear_leaves_the_head_out() -> None:
    factors, _ = Lora().extract(Lora().inject(llama(), seed=0))
    assert len(factors) == 14
    assert "lm_head" not in factors
    assert "model.layers.1.mlp.down_proj" in factors
