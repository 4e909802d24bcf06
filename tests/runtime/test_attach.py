"""A bank attached to a model: exact against PEFT, invisible when it is gone, and the same with and without a cache."""

import pytest
import torch
from kv_cache import CACHE, cache_of
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import WIDTH, block, logits, trained_like
from transformers import LlamaForCausalLM

from pmemx.core.bank import ExpertBank
from pmemx.core.block import BlockCard, CapabilityBlock
from pmemx.core.errors import IncompatibleBlock, PmemxError
from pmemx.gate.linear import LinearGate
from pmemx.gate.oracle import OracleGate
from pmemx.gate.sequence import SequenceGate
from pmemx.runtime.attach import attached
from pmemx.select.softmax import Softmax
from pmemx.select.top_k import TopK


def peft_model(llama: LlamaForCausalLM, blocks: list[CapabilityBlock]) -> PeftModel:
    """The same experts as adapters of a copy of the model."""
    copy = LlamaForCausalLM(llama.config).eval()
    copy.load_state_dict(llama.state_dict())
    model = None
    for number, expert in enumerate(blocks):
        rank = next(iter(expert.factors.values())).rank
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(expert.factors), task_type="CAUSAL_LM")
        if model is None:
            model = get_peft_model(copy, config, adapter_name=f"px{number}")
        else:
            model.add_adapter(f"px{number}", config)
        for site, factors in expert.factors.items():
            layer = model.get_base_model().get_submodule(site)
            layer.lora_A[f"px{number}"].weight.data.copy_(factors.A)
            layer.lora_B[f"px{number}"].weight.data.copy_(factors.B * factors.scale)
    assert model is not None
    return model.eval()


def hooks_of(model: torch.nn.Module) -> list[list[int]]:
    """By module; transformers leaves some of its own."""
    return [[*module._forward_hooks, *module._forward_pre_hooks] for module in model.modules()]


def test_with_every_expert_off_logits_are_bit_equal_to_the_base(llama, bank, ids):
    base = logits(llama, ids)
    gate = OracleGate(bank.shape(WIDTH))
    with attached(llama, bank, gate=gate, select=TopK()):
        assert torch.equal(logits(llama, ids), base)
    with attached(llama, bank, weights=[0.0] * 8):
        assert torch.equal(logits(llama, ids), base)


def test_leaving_restores_the_base_bit_for_bit_even_after_an_error(llama, bank, ids):
    base, keys, hooks = logits(llama, ids), set(llama.state_dict()), hooks_of(llama)
    with attached(llama, bank, weights=[1.0] * 8):
        assert hooks_of(llama) != hooks
        assert set(llama.state_dict()) == keys
    with pytest.raises(IndexError, match="out of range"), attached(llama, bank, weights=[1.0] * 8):
        llama(input_ids=ids + 1000)
    assert torch.equal(logits(llama, ids), base)
    assert hooks_of(llama) == hooks


def test_each_expert_alone_equals_peft(llama, bank, blocks, ids):
    model = peft_model(llama, blocks)
    for number in range(8):
        model.set_adapter(f"px{number}")
        weights = [float(number == other) for other in range(8)]
        with attached(llama, bank, weights=weights):
            ours = logits(llama, ids)
        assert (ours - logits(model, ids)).abs().max() < 1e-5
        assert (ours - logits(llama, ids)).abs().max() > 1e-2


def test_the_sum_of_all_experts_equals_peft_with_all_active(llama, bank, blocks, ids):
    model = peft_model(llama, blocks)
    model.base_model.set_adapter([f"px{number}" for number in range(8)])
    with attached(llama, bank, weights=[1.0] * 8):
        assert (logits(llama, ids) - logits(model, ids)).abs().max() < 1e-4


def test_a_mixed_batch_equals_peft_row_by_row(llama, bank, blocks, ids):
    model = peft_model(llama, blocks)
    choice = torch.tensor([3, 0, 8, 1])
    with (
        attached(llama, bank, gate=OracleGate(bank.shape(WIDTH)), select=TopK()) as routed,
        routed.given(domain=choice),
    ):
        ours = logits(llama, ids)
    base = logits(llama, ids)
    for row, expert in enumerate(choice.tolist()):
        if expert == 0:
            assert (ours[row] - base[row]).abs().max() < 1e-6
        else:
            model.set_adapter(f"px{expert - 1}")
            assert (ours[row] - logits(model, ids[row : row + 1])[0]).abs().max() < 1e-5


def test_an_expert_chosen_by_the_oracle_gives_the_same_bits_in_a_bank_of_one_and_of_eight(llama, ids):
    same_rank = [block(llama, number) for number in (1, 5, 13, 17, 25, 29, 37, 41)]
    choice = torch.ones(4, dtype=torch.long)
    seen = []
    for size in (1, 2, 8):
        bank = ExpertBank(same_rank[:size])
        gate = OracleGate(bank.shape(WIDTH))
        with attached(llama, bank, gate=gate, select=TopK()) as routed, routed.given(domain=choice):
            seen.append(logits(llama, ids))
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])


GATES = {
    "sequence": lambda shape: SequenceGate(shape),
    "sequence-window-3": lambda shape: SequenceGate(shape, window=3),
    "sequence-layer-1": lambda shape: SequenceGate(shape, layer=1),
    "linear-prompt": lambda shape: LinearGate(shape, granularity="prompt"),
    "linear-token": lambda shape: LinearGate(shape, granularity="token"),
}


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("select", [TopK(), TopK(k=3), Softmax()], ids=["top-1", "top-3", "softmax"])
def test_greedy_tokens_are_those_of_full_recomputation(llama, bank, ids, name, select):
    gate = trained_like(GATES[name](bank.shape(WIDTH)))
    with attached(llama, bank, gate=gate, select=select) as routed:
        mask = torch.ones_like(ids)
        cached = llama.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None
        )
        grown = ids
        prompt = torch.ones_like(ids, dtype=torch.bool)
        for _ in range(6):
            with routed.given(prompt=prompt):
                grown = torch.cat([grown, logits(llama, grown)[:, -1:].argmax(dim=-1)], dim=1)
            prompt = torch.cat([prompt, torch.zeros_like(prompt[:, :1])], dim=1)
    assert torch.equal(cached, grown)


@pytest.mark.parametrize("name", GATES)
def test_a_later_token_never_changes_an_earlier_logit(llama, bank, ids, name):
    gate = trained_like(GATES[name](bank.shape(WIDTH)))
    prompt = torch.zeros_like(ids, dtype=torch.bool)
    prompt[:, :5] = True
    changed = ids.clone()
    changed[:, 7:] = 3
    with attached(llama, bank, gate=gate, select=Softmax()) as routed, routed.given(prompt=prompt):
        assert torch.equal(logits(llama, ids)[:, :7], logits(llama, changed)[:, :7])


def test_left_padding_does_not_change_a_decision(llama, bank, ids):
    gate = trained_like(SequenceGate(bank.shape(WIDTH)))
    padded = torch.cat([torch.zeros(4, 3, dtype=torch.long), ids], dim=1)
    mask = torch.cat([torch.zeros(4, 3, dtype=torch.long), torch.ones_like(ids)], dim=1)
    with attached(llama, bank, gate=gate, select=TopK()):
        plain = llama.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
        left = llama.generate(input_ids=padded, attention_mask=mask, max_new_tokens=5, do_sample=False)
    assert torch.equal(plain[:, 9:], left[:, 12:])


def test_sampling_from_one_seed_repeats_itself(llama, bank, ids):
    gate = trained_like(SequenceGate(bank.shape(WIDTH)))
    drawn = []
    with attached(llama, bank, gate=gate, select=TopK()):
        for _ in range(2):
            torch.manual_seed(5)
            mask = torch.ones_like(ids)
            drawn.append(llama.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=True))
    assert torch.equal(drawn[0], drawn[1])


def test_gradients_reach_the_gate_and_nothing_else(llama, bank, ids):
    gate = SequenceGate(bank.shape(WIDTH))
    with attached(llama, bank, gate=gate, select=Softmax()):
        llama(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False).loss.backward()
    assert gate.choice.weight.grad is not None and gate.choice.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in llama.parameters())


def test_an_inactive_expert_is_never_chosen(llama, bank, ids):
    gate = OracleGate(bank.shape(WIDTH))
    base = logits(llama, ids)
    with attached(llama, bank, gate=gate, select=TopK()) as routed:
        routed.activate(["expert-0"])
        with routed.given(domain=torch.full((4,), 3)):
            assert torch.equal(logits(llama, ids), base)
        routed.activate(None)
        with routed.given(domain=torch.full((4,), 3)):
            assert not torch.equal(logits(llama, ids), base)


def test_a_bank_of_another_base_is_refused(llama, blocks):
    other = ExpertBank([CapabilityBlock(BlockCard(name="e", domain="d", base="a" * 64), blocks[0].factors)])
    with (
        pytest.raises(IncompatibleBlock, match="trained on base aaaaaaaaaaaa"),
        attached(llama, other, weights=[1.0], base="b"),
    ):
        pass


def test_a_cache_of_other_rows_is_refused(llama, bank, ids):
    gate = SequenceGate(bank.shape(WIDTH))
    with attached(llama, bank, gate=gate, select=TopK()), torch.no_grad():
        cache = cache_of(llama(input_ids=ids, use_cache=True))
        with pytest.raises(PmemxError, match="a cache of 4 rows is continued with 2"):
            llama(input_ids=ids[:2, :1], **{CACHE: cache}, use_cache=True)


def test_weights_and_a_gate_together_are_refused(llama, bank):
    both = attached(llama, bank, weights=[1.0] * 8, gate=OracleGate(bank.shape(WIDTH)), select=TopK())
    with pytest.raises(PmemxError, match="not with both"), both:
        pass
