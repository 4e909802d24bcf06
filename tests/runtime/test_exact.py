"""The same numbers as PEFT, to 2e-6 in float32, for experts of mixed rank and alpha."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from pmemx.core.bank import ExpertBank
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.gate.oracle import OracleGate
from pmemx.runtime.attach import attached
from pmemx.select.top_k import TopK

TOLERANCE = 2e-6
EXPERTS = 9
CONFIG = LlamaConfig(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=112,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def peft(llama: LlamaForCausalLM) -> PeftModel:
    """Nine adapters of ranks 1 to 8 and alphas 4 to 20, some of which leave layers out."""
    copy = LlamaForCausalLM(CONFIG).eval()
    copy.load_state_dict(llama.state_dict())
    model = None
    for number in range(EXPERTS):
        targets = (
            ["q_proj", "v_proj", "down_proj"] if number % 3 else ["q_proj", "k_proj", "o_proj", "gate_proj", "up_proj"]
        )
        config = LoraConfig(r=1 + number % 8, lora_alpha=4 + 2 * number, target_modules=targets, task_type="CAUSAL_LM")
        if model is None:
            model = get_peft_model(copy, config, adapter_name=f"px{number}")
        else:
            model.add_adapter(f"px{number}", config)
    assert model is not None
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.04
    return model.eval()


@pytest.fixture(scope="module")
def bank(peft: PeftModel) -> ExpertBank:
    blocks = []
    for number in range(EXPERTS):
        name = f"px{number}"
        layers = {site: m for site, m in peft.get_base_model().named_modules() if name in getattr(m, "lora_A", {})}
        factors = {
            site: LoraFactors(layer.lora_A[name].weight.data, layer.lora_B[name].weight.data, layer.scaling[name])
            for site, layer in layers.items()
        }
        blocks.append(CapabilityBlock(BlockCard(name=name, domain="d", base=""), factors))
    return ExpertBank(blocks)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 97, (10, 12), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def logits(model: torch.nn.Module, ids: torch.Tensor, **arguments) -> torch.Tensor:
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **arguments).logits


def test_a_mixed_batch_with_a_row_for_the_base(llama, peft, bank, ids):
    choice = torch.tensor([3, 0, 8, 1, 9, 2, 5, 4, 7, 6])
    names = ["__base__" if number == 0 else f"px{number - 1}" for number in choice.tolist()]
    with (
        attached(llama, bank, gate=OracleGate(bank.shape(64)), select=TopK()) as routed,
        routed.given(domain=choice),
    ):
        ours = logits(llama, ids)
    theirs = logits(peft, ids, adapter_names=names)
    assert (ours - theirs).abs().max() <= TOLERANCE
    assert (ours - logits(llama, ids)).abs().amax(dim=(1, 2)).gt(1e-3).tolist() == [
        number > 0 for number in choice.tolist()
    ]


def test_the_sum_of_all(llama, peft, bank, ids):
    peft.base_model.set_adapter([f"px{number}" for number in range(EXPERTS)])
    with attached(llama, bank, weights=[1.0] * EXPERTS):
        assert (logits(llama, ids) - logits(peft, ids)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("number", range(EXPERTS))
def test_each_alone(llama, peft, bank, ids, number):
    peft.set_adapter(f"px{number}")
    with attached(llama, bank, weights=[float(number == other) for other in range(EXPERTS)]):
        assert (logits(llama, ids) - logits(peft, ids)).abs().max() <= TOLERANCE


def test_a_weighted_sum_equals_the_deltas_merged_into_the_weights(llama, bank, ids):
    weights = torch.linspace(-0.5, 1.5, EXPERTS)
    merged = LlamaForCausalLM(CONFIG).eval().double()
    merged.load_state_dict(llama.state_dict())
    for weight, name in zip(weights.tolist(), bank.names, strict=True):
        for site, factors in bank.factors(name).items():
            merged.get_submodule(site).weight.data += weight * factors.delta().double()
    with attached(llama, bank, weights=weights):
        assert (logits(llama, ids) - logits(merged, ids)).abs().max() <= TOLERANCE


def test_greedy_tokens_of_a_mixed_batch(llama, peft, bank, ids):
    choice = torch.arange(10) % (EXPERTS + 1)
    names = ["__base__" if number == 0 else f"px{number - 1}" for number in choice.tolist()]
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    with (
        attached(llama, bank, gate=OracleGate(bank.shape(64)), select=TopK()) as routed,
        routed.given(domain=choice),
    ):
        ours = llama.generate(input_ids=ids, **settings)
    assert torch.equal(ours, peft.generate(input_ids=ids, adapter_names=names, **settings))
