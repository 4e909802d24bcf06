"""A cache is found under either name; a base that hides it, or an argument without a known meaning, stops with a sentence."""

import pytest
import torch
from kv_cache import CACHE, cache_of
from tiny_models import SIZES, WIDTH, block, frozen, tiny_llama, trained_like
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache

from pmemx.core.bank import ExpertBank
from pmemx.core.errors import PmemxError
from pmemx.gate.linear import LinearGate
from pmemx.runtime.attach import attached
from pmemx.runtime.forward_arguments import ForwardArguments
from pmemx.select.top_k import TopK


class RenamedCache(LlamaForCausalLM):
    """As a release of transformers that renames the cache argument of `forward`."""

    def forward(self, input_ids=None, attention_mask=None, memory=None, **kwargs):
        return super().forward(input_ids, attention_mask, **{CACHE: memory}, **kwargs)

    def prepare_inputs_for_generation(self, *args, **kwargs):
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        inputs["memory"] = inputs.pop(CACHE)
        return inputs


class ForgottenCache(LlamaForCausalLM):
    """As a release that takes the cache under the known name and reads nothing of it."""

    def forward(self, input_ids=None, attention_mask=None, cache=None, **kwargs):
        kwargs.pop("past_key_values", None)
        kwargs.pop("position_ids", None)
        if cache is not None and cache.get_seq_length():
            super().forward(input_ids, **{CACHE: cache}, **kwargs)  # it grows all the same
            return super().forward(input_ids, **kwargs)
        return super().forward(input_ids, **{CACHE: cache}, **kwargs)


def built(kind: type[LlamaForCausalLM]) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return frozen(kind(LlamaConfig(**SIZES)))


def eight(model: nn.Module) -> ExpertBank:
    return ExpertBank([block(model, number) for number in range(8)])


def by_prompt(bank: ExpertBank) -> LinearGate:
    return trained_like(LinearGate(bank.shape(WIDTH), granularity="prompt"))


def test_a_base_that_renames_its_cache_argument_is_not_attached(ids):
    model = built(RenamedCache)
    bank = eight(model)
    with (
        pytest.raises(
            PmemxError, match=r"RenamedCache\.forward was given 'memory', a KV cache under a name that pmemx does"
        ),
        attached(model, bank, gate=by_prompt(bank), select=TopK()),
    ):
        pass


def test_where_nobody_checked_the_first_cached_pass_stops(ids):
    model = built(RenamedCache)
    bank = eight(model)
    with attached(model, bank, gate=by_prompt(bank), select=TopK(), check_cache=False):
        with pytest.raises(PmemxError, match="'memory'"):
            model.generate(ids, max_new_tokens=2)
        with pytest.raises(PmemxError, match="'memory'"), torch.no_grad():
            model(input_ids=ids, memory=DynamicCache())


def test_a_base_whose_cached_logits_are_others_is_not_attached():
    model = built(ForgottenCache)
    bank = eight(model)
    with (
        pytest.raises(PmemxError, match="says something else with a KV cache"),
        attached(model, bank, weights=[1.0] * 8),
    ):
        pass
    with attached(model, bank, weights=[1.0] * 8, check_cache=False):
        pass


def test_a_base_is_checked_once_and_a_sound_one_says_nothing():
    model, passes = tiny_llama(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    bank = eight(model)
    for _ in range(2):
        with attached(model, bank, weights=[1.0] * 8):
            pass
    assert len(passes) == 4  # three tokens with the cache, all of them once without


def test_the_settings_that_a_base_generates_by_have_no_say_in_the_check_and_stay():
    model = tiny_llama()
    model.generation_config.num_return_sequences, model.generation_config.num_beams = 2, 3
    stored = model.generation_config
    with attached(model, eight(model), weights=[1.0] * 8):
        assert model.generation_config is stored
        assert (stored.num_return_sequences, stored.num_beams) == (2, 3)


def test_a_base_in_training_is_checked_when_it_serves():
    model = built(RenamedCache).train()
    bank = eight(model)
    with attached(model, bank, weights=[1.0] * 8):
        pass
    with pytest.raises(PmemxError, match="'memory'"), attached(model.eval(), bank, weights=[1.0] * 8):
        pass


@pytest.mark.parametrize("granularity", ["token", "prompt", "prefix"])
def test_a_cache_means_the_same_under_either_name(llama, bank, ids, granularity):
    gate = trained_like(LinearGate(bank.shape(WIDTH), granularity=granularity))
    said = []
    with attached(llama, bank, gate=gate, select=TopK()), torch.no_grad():
        for name in {CACHE, "past_key_values"}:
            cache = cache_of(llama(input_ids=ids, use_cache=True))
            said.append(llama(input_ids=ids[:, :1], use_cache=True, **{name: cache}).logits)
        assert torch.equal(said[0], said[-1])


@pytest.mark.parametrize("name", ["cu_seq_lens_q", "seq_idx", "pixel_values", "encoder_hidden_states"])
def test_an_argument_of_unknown_meaning_is_refused(llama, bank, ids, name):
    with (
        attached(llama, bank, weights=[1.0] * 8),
        pytest.raises(
            PmemxError, match=f"LlamaForCausalLM.forward was given '{name}', an argument that pmemx does not"
        ),
    ):
        llama(input_ids=ids, **{name: torch.zeros(2)})


def test_arguments_by_position_are_named_and_none_is_no_argument(llama, ids):
    cache = DynamicCache()
    found = ForwardArguments(llama).named((ids, None), {"past_key_values": cache, "seq_idx": None})
    assert found.keys() == {"input_ids", "cache"}
    assert found["cache"] is cache


def test_a_cache_of_another_kind_is_refused_and_not_taken_for_none(llama, bank, ids):
    legacy = tuple((torch.zeros(4, 2, 3, 8), torch.zeros(4, 2, 3, 8)) for _ in range(2))
    with (
        attached(llama, bank, gate=by_prompt(bank), select=TopK()),
        pytest.raises(PmemxError, match=f"was given a tuple as '{CACHE}'"),
    ):
        llama(input_ids=ids[:, :1], **{CACHE: legacy})


class MaskedVocabulary(LlamaForCausalLM):
    """As a base that never says some of its tokens."""

    value = float("-inf")

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits[..., -3:] = self.value
        return out


@pytest.mark.parametrize("value", [float("-inf"), torch.finfo(torch.float32).min])
def test_a_base_that_masks_a_part_of_its_vocabulary_is_sound(value, monkeypatch):
    monkeypatch.setattr(MaskedVocabulary, "value", value)
    model = built(MaskedVocabulary)
    with attached(model, eight(model), weights=[1.0] * 8):
        pass


def test_a_mask_hides_no_difference(monkeypatch):
    class Both(MaskedVocabulary, ForgottenCache):
        value = torch.finfo(torch.float32).min

    model = built(Both)
    bank = eight(model)
    with (
        pytest.raises(PmemxError, match="says something else with a KV cache"),
        attached(model, bank, weights=[1.0] * 8),
    ):
        pass


def test_two_caches_are_refused(llama):
    with pytest.raises(PmemxError, match="two KV caches"):
        ForwardArguments(llama).named((), {"past_key_values": DynamicCache(), "cache": DynamicCache()})


def test_a_module_that_takes_no_cache_is_handed_none():
    class NoCache(nn.Module):
        def forward(self, input_ids):
            return input_ids

    assert ForwardArguments(NoCache()).with_cache(None) == {}
    with pytest.raises(PmemxError, match=r"NoCache\.forward takes no KV cache"):
        ForwardArguments(NoCache()).with_cache(DynamicCache())
