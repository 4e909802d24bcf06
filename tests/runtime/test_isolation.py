"""What one request, prompt, cache or attachment knew never reaches another."""

import copy

import pytest
import torch
from kv_cache import CACHE, cache_of
from tiny_models import WIDTH, block, logits, tiny_llama, trained_like

from pmemx.core.bank import ExpertBank
from pmemx.core.errors import PmemxError
from pmemx.core.profile import Profile
from pmemx.gate.arrow import ArrowGate
from pmemx.gate.linear import LinearGate
from pmemx.gate.oracle import OracleGate
from pmemx.gate.sequence import SequenceGate
from pmemx.gate.xlora import XLoraGate
from pmemx.runtime.attach import attach, attached
from pmemx.select.softmax import Softmax
from pmemx.select.top_k import TopK

GATES = {
    "arrow": lambda shape: ArrowGate(shape, granularity="prompt"),
    "arrow by model": lambda shape: ArrowGate(shape, granularity="prompt", level="model"),
    "linear": lambda shape: trained_like(LinearGate(shape, granularity="prompt")),
    "sequence": lambda shape: trained_like(SequenceGate(shape)),
}


@pytest.mark.parametrize("name", GATES)
def test_a_row_without_a_prompt_gets_the_base(llama, bank, ids, name):
    prompt = torch.ones_like(ids, dtype=torch.bool)
    prompt[2] = False
    base = logits(llama, ids)
    gate = GATES[name](bank.shape(WIDTH))
    with attached(llama, bank, gate=gate, select=TopK()) as routed:
        for row in (0, 1, 3):
            routed.activate([f"expert-{row + 1}", f"expert-{row + 4}"])
        with routed.given(prompt=prompt):
            found = logits(llama, ids)
    assert torch.equal(found[2], base[2])


def test_a_cache_of_another_attachment_is_refused(llama, blocks, ids):
    first, second = ExpertBank(blocks[:2]), ExpertBank(blocks[:2])
    with attached(llama, first, weights=[1.0, 0.0]), torch.no_grad():
        cache = cache_of(llama(input_ids=ids, use_cache=True))
    refused = pytest.raises(PmemxError, match="start generation anew")
    with attached(llama, second, weights=[0.0, 1.0]), torch.no_grad(), refused:
        llama(input_ids=ids[:, :1], **{CACHE: cache})


def test_weights_belong_to_names_and_not_to_slots(llama, blocks, ids):
    bank = ExpertBank([blocks[1], blocks[5], blocks[2]], room=4)
    with attached(llama, bank) as routed:
        routed.unload("expert-5")
        routed.weigh([0.0, 1.0])
        alone = logits(llama, ids)
        routed.load(blocks[4])
        assert torch.equal(logits(llama, ids), alone)
        with pytest.raises(PmemxError, match="fixed weights use 'expert-2'"):
            routed.unload("expert-2")


def test_weights_are_what_they_were_when_they_were_given(llama, bank, ids):
    weights = torch.ones(8)
    with attached(llama, bank, weights=weights):
        before = logits(llama, ids)
        weights.zero_()
        assert torch.equal(logits(llama, ids), before)


def test_rows_without_a_profile_keep_the_fixed_weights(llama, bank, ids):
    with attached(llama, bank, weights=[0.5] * 8) as routed:
        fixed = logits(llama, ids)
        routed.define(Profile("one", {"expert-3": 1.0}))
        with routed.given(profiles=["one", None, None, "one"]):
            found = logits(llama, ids)
    assert torch.allclose(found[1:3], fixed[1:3], atol=1e-5)
    assert (found[0] - fixed[0]).abs().max() > 1e-2


def test_a_restriction_that_nothing_obeys_is_refused(llama, bank, ids):
    with attached(llama, bank, weights=[0.5] * 8) as routed:
        with pytest.raises(PmemxError, match="no gate whose choice could be restricted"):
            routed.activate([])
        with pytest.raises(PmemxError, match="here no gate decides"), routed.given(active=[[]]):
            logits(llama, ids)


def test_positional_arguments_mean_what_named_ones_do(llama, bank, ids):
    gate = trained_like(SequenceGate(bank.shape(WIDTH)))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    with attached(llama, bank, gate=gate, select=Softmax()), torch.no_grad():
        named = llama(input_ids=ids, attention_mask=mask, use_cache=False).logits
        assert torch.equal(llama(ids, mask, use_cache=False).logits, named)


@pytest.mark.parametrize("kind", [OracleGate, lambda shape: trained_like(XLoraGate(shape))], ids=["oracle", "xlora"])
def test_a_cache_that_grew_without_the_bank_is_refused(llama, bank, ids, kind):
    with attached(llama, bank, gate=kind(bank.shape(WIDTH)), select=Softmax()) as routed, torch.no_grad():
        cache = cache_of(llama(input_ids=ids, use_cache=True))
        with routed.disabled():
            llama(input_ids=ids[:, :1], **{CACHE: cache})
        with pytest.raises(PmemxError, match="the cache holds 10 tokens, of which 9 were read with the bank enabled"):
            llama(input_ids=ids[:, :1], **{CACHE: cache})


def test_a_decision_about_a_part_of_the_prompt_is_refused(llama, bank, ids):
    gate = trained_like(SequenceGate(bank.shape(WIDTH)))
    mask = torch.ones_like(ids)
    with attached(llama, bank, gate=gate, select=TopK()), torch.no_grad():
        with pytest.raises(PmemxError, match="read the prompt in one pass"):
            llama.generate(input_ids=ids, attention_mask=mask, max_new_tokens=2, prefill_chunk_size=3)
        cache = cache_of(llama(input_ids=ids, use_cache=True))
        with pytest.raises(
            PmemxError, match="3 tokens continue a cache whose decision was taken about the tokens before"
        ):
            llama(input_ids=ids[:, :3], **{CACHE: cache})


def test_a_cache_cannot_be_cut_into_the_prompt_that_was_decided_about(llama, bank, ids):
    gate = trained_like(SequenceGate(bank.shape(WIDTH)))
    with attached(llama, bank, gate=gate, select=TopK()), torch.no_grad():
        cache = cache_of(llama(input_ids=ids, use_cache=True))
        llama(input_ids=ids[:, :1], **{CACHE: cache})
        cache.crop(-1)
        with pytest.raises(PmemxError, match="a decision was taken about 9 tokens, of which 8 would be left"):
            cache.crop(-1)


def test_a_copied_cache_goes_on_by_itself(llama, bank, ids):
    gate = trained_like(SequenceGate(bank.shape(WIDTH)))
    with attached(llama, bank, gate=gate, select=Softmax()) as routed, torch.no_grad():
        routed.define(Profile("one", {"expert-3": 1.0}))
        with routed.given(profiles=["one", None, None, None]):
            cache = cache_of(llama(input_ids=ids, use_cache=True))
            steps = [llama(input_ids=ids[:, :1], **{CACHE: one}).logits for one in (copy.deepcopy(cache), cache)]
    assert torch.equal(*steps)


def test_experts_cannot_change_within_a_pass(llama, bank, blocks, ids):
    refused = pytest.raises(PmemxError, match="experts cannot change within a pass")
    with (
        attached(llama, bank, weights=[0.5] * 8) as routed,
        refused,
        routed.observed(lambda seen: routed.swap("expert-1", blocks[1])),
    ):
        logits(llama, ids)


def test_a_layer_that_sees_a_part_of_the_tokens_is_refused(bank, ids):
    model = tiny_llama()
    layer = model.model.layers[0].mlp
    whole = layer.forward
    layer.forward = lambda x: (
        torch.zeros_like(x).flatten(0, 1).index_copy(0, torch.arange(4), whole(x.flatten(0, 1)[:4])).view_as(x)
    )
    refused = pytest.raises(PmemxError, match=r"mlp.* reads 4 tokens of the pass's 36, and cannot tell whose they are")
    with attached(model, bank, weights=[0.5] * 8, check_cache=False), refused:
        logits(model, ids)


def test_a_tuple_carries_its_cache_as_an_output_does(llama, bank, ids):
    gate = trained_like(SequenceGate(bank.shape(WIDTH)))
    with attached(llama, bank, gate=gate, select=TopK()), torch.no_grad():
        cache = llama(input_ids=ids, use_cache=True, return_dict=False)[1]
        assert llama(input_ids=ids[:, :1], **{CACHE: cache}).logits.shape[1] == 1


def test_a_second_bank_takes_over_after_detach(llama, bank, blocks, ids):
    attach(llama, bank, weights=[1.0] * 8).detach()
    with attached(llama, ExpertBank([block(llama, 3)]), weights=[1.0]):
        found = logits(llama, ids)
    with attached(llama, bank, weights=[float(number == 3) for number in range(8)]):
        assert torch.allclose(logits(llama, ids), found, atol=1e-5)
