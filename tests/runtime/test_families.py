"""Experts on models of other families: each layer's own kind of linear map, fused projections, ties and soft caps."""

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import SIZES, VOCAB, block, frozen, logits, trained_like
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pmemx.core.bank import ExpertBank
from pmemx.core.block import CapabilityBlock
from pmemx.gate.linear import LinearGate
from pmemx.gate.oracle import OracleGate
from pmemx.gate.xlora import XLoraGate
from pmemx.runtime.attach import attached
from pmemx.select.top_k import TopK

HEADS = SIZES | {"head_dim": 8}
SPLIT = ("q_proj", "v_proj", "up_proj", "down_proj")
FAMILIES: dict[str, tuple[Callable[[], PreTrainedModel], tuple[str, ...]]] = {
    "gpt2": (
        lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
        ),
        ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    ),
    "qwen2": (lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)), SPLIT),
    "qwen3": (lambda: Qwen3ForCausalLM(Qwen3Config(**HEADS)), SPLIT),
    "gemma2": (
        lambda: Gemma2ForCausalLM(Gemma2Config(**HEADS, query_pre_attn_scalar=8, attn_implementation="eager")),
        SPLIT,
    ),
    "gemma3": (lambda: Gemma3ForCausalLM(Gemma3TextConfig(**HEADS, query_pre_attn_scalar=8, sliding_window=5)), SPLIT),
    "mistral": (lambda: MistralForCausalLM(MistralConfig(**HEADS, sliding_window=5)), SPLIT),
    "phi": (lambda: PhiForCausalLM(PhiConfig(**SIZES)), ("q_proj", "dense", "fc1", "fc2")),
    "phi3": (lambda: Phi3ForCausalLM(Phi3Config(**SIZES)), ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> tuple[PreTrainedModel, list[CapabilityBlock], Callable[[], PreTrainedModel]]:
    """A model, eight experts for it, and how to make the same model again."""
    build, targets = FAMILIES[request.param]

    def made() -> PreTrainedModel:
        torch.manual_seed(0)
        return frozen(build())

    model = made()
    return model, [block(model, number, targets) for number in range(8)], made


def alone_in_peft(model: PreTrainedModel, expert: CapabilityBlock) -> PreTrainedModel:
    """The model with one adapter that holds the expert's factors."""
    rank = next(iter(expert.factors.values())).rank
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(expert.factors),
        fan_in_fan_out=isinstance(model, GPT2LMHeadModel),
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, config)
    for site, factors in expert.factors.items():
        layer = wrapped.get_base_model().get_submodule(site)
        layer.lora_A["default"].weight.data.copy_(factors.A)
        layer.lora_B["default"].weight.data.copy_(factors.B * factors.scale)
    return wrapped.eval()


def test_each_expert_alone_and_in_a_mixed_batch_equals_peft(family):
    model, blocks, made = family
    ids = torch.randint(3, VOCAB, (8, 9), generator=torch.Generator().manual_seed(7))
    bank, base = ExpertBank(blocks), logits(model, ids)
    with (
        attached(model, bank, gate=OracleGate(bank.shape(32)), select=TopK()) as routed,
        routed.given(domain=torch.arange(1, 9)),
    ):
        mixed = logits(model, ids)
    for number, expert in enumerate(blocks):
        theirs = logits(alone_in_peft(made(), expert), ids)
        with attached(model, bank, weights=[float(number == other) for other in range(8)]):
            assert (logits(model, ids) - theirs).abs().max() < 1e-5
        assert (mixed[number] - theirs[number]).abs().max() < 1e-5
        assert (mixed[number] - base[number]).abs().max() > 1e-2


def test_leaving_restores_the_bits_of_the_base(family):
    model, blocks, _ = family
    ids = torch.randint(3, VOCAB, (4, 9), generator=torch.Generator().manual_seed(7))
    base = logits(model, ids)
    with attached(model, ExpertBank(blocks), weights=[1.0] * 8):
        assert not torch.equal(logits(model, ids), base)
    assert torch.equal(logits(model, ids), base)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [(LinearGate, {"granularity": "prefix", "level": "layer"}), (XLoraGate, {}), (LinearGate, {"level": "model"})],
    ids=["a running vote by layer", "a second cache", "the prompt's vote"],
)
def test_generation_with_a_cache_says_what_full_recomputation_says(family, kind, arguments):
    model, blocks, _ = family
    bank = ExpertBank(blocks)
    ids = torch.randint(3, VOCAB, (4, 9), generator=torch.Generator().manual_seed(7))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    asked = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 5, "do_sample": False}
    asked |= {"eos_token_id": None, "pad_token_id": 0}
    gate = trained_like(kind(bank.shape(32), **arguments))
    with attached(model, bank, gate=gate, select=TopK(k=2)) as routed:
        cached = model.generate(**asked)
        with routed.given(prompt=mask.bool()):
            assert torch.equal(cached, model.generate(**asked, use_cache=False))
    assert not torch.equal(cached, model.generate(**asked))
