"""Half precision and quantised bases: results stay near float32, no further from it than the peer's, and nothing is NaN."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from tiny_models import VOCAB, WIDTH, block, frozen, logits, tiny_llama, trained_like
from torch import nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from pmemx.core.bank import ExpertBank
from pmemx.gate.linear import LinearGate
from pmemx.gate.oracle import OracleGate
from pmemx.gate.sequence import SequenceGate
from pmemx.gate.task import TaskGate
from pmemx.gate.xlora import XLoraGate
from pmemx.runtime.attach import attached
from pmemx.select.softmax import Softmax
from pmemx.select.top_k import TopK

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# Of the mean absolute value: a few units in the last place, which are 2**-9 and 2**-12 of a number.
NEAR = {"bfloat16": 0.02, "float16": 0.0025}
GATES = {
    "linear by token": lambda shape: LinearGate(shape, granularity="token"),
    "linear by layer and prefix": lambda shape: LinearGate(shape, granularity="prefix", level="layer"),
    "xlora": lambda shape: XLoraGate(shape),
    "sequence": lambda shape: SequenceGate(shape),
}
ROWS = torch.arange(1, 9)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, VOCAB, (8, 24), generator=torch.Generator().manual_seed(7))


def relative(got: torch.Tensor, truth: torch.Tensor) -> float:
    return float((got.float() - truth).abs().mean() / truth.abs().mean())


def assert_no_further(got: torch.Tensor, peer: torch.Tensor, truth: torch.Tensor, near: float) -> None:
    """Errors are means over the tokens, each with roundings of its own: two of one size differ by 1 / sqrt(tokens)."""
    chance = truth.shape[:-1].numel() ** -0.5
    assert relative(got, truth) <= (1 + chance) * relative(peer, truth) and relative(peer, truth) < near


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", GATES)
def test_a_pass_under_autocast_is_near_float32_and_of_the_type_of_the_base(llama, bank, ids, name, half):
    with torch.autocast("cpu", HALVES[half]):
        base = logits(llama, ids)
    with attached(llama, bank, gate=trained_like(GATES[name](bank.shape(WIDTH))), select=Softmax()):
        truth = logits(llama, ids)
        with torch.autocast("cpu", HALVES[half]):
            got = logits(llama, ids)
    assert got.dtype == base.dtype == HALVES[half]
    assert relative(got, truth) < NEAR[half]


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", GATES)
def test_gradients_of_a_gate_under_autocast_point_where_those_of_float32_do(llama, bank, ids, name, half):
    gate = trained_like(GATES[name](bank.shape(WIDTH)))
    found = []
    with attached(llama, bank, gate=gate, select=Softmax()):
        for enabled in (False, True):
            gate.zero_grad()
            with torch.autocast("cpu", HALVES[half], enabled=enabled):
                out = llama(input_ids=ids, use_cache=False).logits
            F.cross_entropy(out[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten()).backward()
            # A gate by layer has matrices that no first site of a layer asks for.
            grads = [parameter.grad for parameter in gate.parameters() if parameter.grad is not None]
            assert all(grad.dtype == torch.float32 for grad in grads)
            found.append(torch.cat([grad.flatten() for grad in grads]))
    assert found[1].isfinite().all() and found[0].norm() > 1e-4
    assert F.cosine_similarity(found[0], found[1], dim=0) > (0.99 if half == "bfloat16" else 0.9999)


@pytest.mark.parametrize("half", HALVES)
def test_generation_under_autocast_with_a_cache_says_what_recomputation_says(llama, bank, ids, half):
    gate = trained_like(XLoraGate(bank.shape(WIDTH)))
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 4, "eos_token_id": None}
    with attached(llama, bank, gate=gate, select=Softmax()), torch.autocast("cpu", HALVES[half]):
        cached = llama.generate(**asked, do_sample=False)
        assert torch.equal(cached, llama.generate(**asked, do_sample=False, use_cache=False))


# A model in half precision, beside PEFT with adapters of the same type.


def in_peft(model: LlamaForCausalLM, blocks, half: torch.dtype) -> PeftModel:
    """half: of the adapters; float32 is PEFT's own default, whatever the model's."""
    wrapped, own = None, half != torch.float32
    for number, expert in enumerate(blocks):
        first = next(iter(expert.factors.values()))
        config = LoraConfig(
            r=first.rank,
            lora_alpha=first.rank * first.scale,
            target_modules=list(expert.factors),
            task_type="CAUSAL_LM",
        )
        if wrapped is None:
            wrapped = get_peft_model(model, config, adapter_name=f"px{number}", autocast_adapter_dtype=not own)
        else:
            wrapped.add_adapter(f"px{number}", config, autocast_adapter_dtype=not own)
        for site, factors in expert.factors.items():
            layer = wrapped.get_base_model().get_submodule(site)
            layer.lora_A[f"px{number}"].weight.data.copy_(factors.A)
            layer.lora_B[f"px{number}"].weight.data.copy_(factors.B)
            assert layer.lora_A[f"px{number}"].weight.dtype == half
    assert wrapped is not None
    return wrapped.eval()


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("what", ["a mixed batch", "the sum of all", "a soft gate"])
def test_a_model_in_half_precision_is_no_further_from_float32_than_peft(llama, blocks, ids, what, half):
    low = copy.deepcopy(llama).to(HALVES[half])
    table = torch.randn(9, 9, generator=torch.Generator().manual_seed(2))
    names = [f"px{number}" for number in range(8)]

    def ours(model):
        bank = ExpertBank(blocks)
        if what == "the sum of all":
            with attached(model, bank, weights=[1.0] * 8):
                return logits(model, ids)
        gate = OracleGate(bank.shape(WIDTH)) if what == "a mixed batch" else TaskGate(bank.shape(WIDTH))
        if isinstance(gate, TaskGate):
            gate.table.data.copy_(table)
        select = TopK() if what == "a mixed batch" else Softmax()
        with attached(model, bank, gate=gate, select=select) as routed, routed.given(domain=ROWS):
            return logits(model, ids)

    def theirs(model):
        wrapped = in_peft(copy.deepcopy(model), blocks, model.dtype)
        if what == "a mixed batch":
            with torch.no_grad():
                return wrapped(input_ids=ids, adapter_names=names, use_cache=False).logits
        wrapped.base_model.set_adapter(names)
        if what == "the sum of all":
            return logits(wrapped, ids)
        rows, layers = [], [m for m in wrapped.modules() if isinstance(m, LoraLayer)]
        scaling = [dict(layer.scaling) for layer in layers]
        for row in range(8):
            share = table[row + 1].softmax(dim=0)[1:].tolist()
            for layer, given in zip(layers, scaling, strict=True):
                layer.scaling = {name: given[name] * share[names.index(name)] for name in given}
            rows.append(logits(wrapped, ids[row : row + 1]))
        return torch.cat(rows)

    truth = ours(copy.deepcopy(low).float())
    assert (theirs(copy.deepcopy(low).float()) - truth).abs().max() < 1e-5
    got, peer = ours(low), theirs(low)
    assert got.dtype == HALVES[half]
    assert_no_further(got, peer, truth, NEAR[half])


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("what", ["a mixed batch", "the sum of all"])
def test_float32_experts_on_a_half_model_are_no_further_from_float32_than_those_of_peft(llama, blocks, ids, what, half):
    low = copy.deepcopy(llama).to(HALVES[half])
    names = [f"px{number}" for number in range(8)]

    def ours(model):
        bank = ExpertBank(blocks)
        if what == "the sum of all":
            with attached(model, bank, weights=[1.0] * 8, dtype=torch.float32):
                return logits(model, ids)
        gate = OracleGate(bank.shape(WIDTH))
        with attached(model, bank, gate=gate, select=TopK(), dtype=torch.float32) as routed:
            assert bank.dtype == torch.float32
            with routed.given(domain=ROWS):
                return logits(model, ids)

    wrapped = in_peft(copy.deepcopy(low), blocks, torch.float32)
    if what == "the sum of all":
        wrapped.base_model.set_adapter(names)
        peer = logits(wrapped, ids)
    else:
        with torch.no_grad():
            peer = wrapped(input_ids=ids, adapter_names=names, use_cache=False).logits
    truth = ours(copy.deepcopy(low).float())
    assert_no_further(ours(low), peer, truth, NEAR[half])


# Bases whose weights are quantised.


def with_torchao(model: LlamaForCausalLM) -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    quantization.quantize_(
        model,
        quantization.Int8WeightOnlyConfig(),
        filter_fn=lambda m, n: isinstance(m, nn.Linear) and "lm_head" not in n,
    )


def with_bitsandbytes(model: LlamaForCausalLM, make) -> None:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            model.set_submodule(name, make(module), strict=True)


def in_8_bits(model: LlamaForCausalLM) -> None:
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

    def make(linear: nn.Linear) -> nn.Module:
        new = bnb.nn.Linear8bitLt(linear.in_features, linear.out_features, bias=False, has_fp16_weights=False)
        new.weight = bnb.nn.Int8Params(linear.weight.data.clone(), requires_grad=False, has_fp16_weights=False)
        return new.to("cpu")

    with_bitsandbytes(model, make)


def in_4_bits(model: LlamaForCausalLM) -> None:
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

    def make(linear: nn.Linear) -> nn.Module:
        new = bnb.nn.Linear4bit(linear.in_features, linear.out_features, bias=False, compute_dtype=torch.float32)
        new.weight = bnb.nn.Params4bit(linear.weight.data.clone(), requires_grad=False, quant_type="nf4")
        return new.to("cpu")

    with_bitsandbytes(model, make)


@pytest.fixture(params=[with_torchao, in_8_bits, in_4_bits])
def quantised(request) -> LlamaForCausalLM:
    model = tiny_llama(hidden_size=64, intermediate_size=128)
    plain = model.get_submodule("model.layers.0.mlp.up_proj").weight
    request.param(model)
    assert type(model.get_submodule("model.layers.0.mlp.up_proj").weight) is not type(plain)
    return frozen(model)


def test_experts_on_a_quantised_base_add_what_they_add_to_its_dequantised_weights(quantised, ids):
    # The experts' part alone is exact: what comes out of a site minus the base's own is the sum of the deltas.
    blocks = [block(tiny_llama(hidden_size=64, intermediate_size=128), number) for number in range(8)]
    site = "model.layers.1.mlp.down_proj"
    seen = []
    handle = quantised.get_submodule(site).register_forward_hook(
        lambda module, args, out: seen.append((args[0].float(), out.detach().float().clone()))
    )
    with attached(quantised, ExpertBank(blocks), weights=[1.0] * 8, check_cache=False):
        after = quantised.get_submodule(site).register_forward_hook(
            lambda module, args, out: seen.append((args[0].float(), out.detach().float().clone()))
        )
        mixed = logits(quantised, ids)
        after.remove()
    handle.remove()
    (x, before), (_, behind) = seen
    delta = sum(expert.factors[site].delta() for expert in blocks if site in expert.factors)
    assert (behind - before - x @ delta.T).abs().max() < 1e-4
    assert mixed.isfinite().all() and (mixed - logits(quantised, ids)).abs().max() > 1e-2


def test_generation_and_gradients_work_on_a_quantised_base_and_leaving_restores_it(quantised, ids):
    bank = ExpertBank([block(tiny_llama(hidden_size=64, intermediate_size=128), number) for number in range(8)])
    base = logits(quantised, ids)
    gate = trained_like(LinearGate(bank.shape(64), granularity="token"))
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 4, "eos_token_id": None}
    with attached(quantised, bank, gate=gate, select=Softmax()):
        cached = quantised.generate(**asked, do_sample=False)
        assert torch.equal(cached, quantised.generate(**asked, do_sample=False, use_cache=False))
        quantised(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    grads = torch.cat([parameter.grad.flatten() for parameter in gate.parameters()])
    assert grads.isfinite().all() and grads.norm() > 1e-4
    assert all(parameter.grad is None for parameter in quantised.parameters())
    assert torch.equal(logits(quantised, ids), base)
