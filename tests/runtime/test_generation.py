"""Generation with a KV cache says what recomputing everything at every step says, whatever the gate and the search."""

import pytest
import torch
from kv_cache import CACHE, cache_of
from tiny_models import SIZES, VOCAB, WIDTH, block, frozen, tiny_llama, trained_like
from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM
from transformers.cache_utils import DynamicCache, StaticCache

from pmemx.core.bank import ExpertBank
from pmemx.core.errors import PmemxError
from pmemx.core.profile import Profile
from pmemx.gate.arrow import ArrowGate
from pmemx.gate.linear import LinearGate
from pmemx.gate.oracle import OracleGate
from pmemx.gate.phatgoose import PhatgooseGate
from pmemx.gate.retrieval import RetrievalGate
from pmemx.gate.sequence import SequenceGate
from pmemx.gate.spectr import SpectrGate
from pmemx.gate.task import TaskGate
from pmemx.gate.uniform import UniformGate
from pmemx.gate.xlora import XLoraGate
from pmemx.runtime.attach import attached
from pmemx.runtime.cache import routing_layer
from pmemx.select.sample import Sample
from pmemx.select.softmax import Softmax
from pmemx.select.threshold import Threshold
from pmemx.select.top_k import TopK
from pmemx.select.top_p import TopP

GRANULARITIES = ("token", "prefix", "prompt")
GATES = {
    f"linear {granularity} {level}": (LinearGate, {"granularity": granularity, "level": level})
    for granularity in GRANULARITIES
    for level in ("site", "layer", "model")
}
for granularity in GRANULARITIES:
    GATES |= {
        f"xlora {granularity}": (XLoraGate, {"granularity": granularity}),
        f"xlora by site {granularity}": (XLoraGate, {"granularity": granularity, "layerwise": True, "layer": 1}),
        f"sequence {granularity}": (SequenceGate, {"granularity": granularity, "layer": -1, "window": 3}),
        f"embedding {granularity}": (SequenceGate, {"granularity": granularity, "layer": 0, "window": 2}),
        f"retrieval {granularity}": (RetrievalGate, {"granularity": granularity, "layer": 1}),
        f"arrow {granularity}": (ArrowGate, {"granularity": granularity, "abstain": 0.5}),
        f"spectr {granularity}": (SpectrGate, {"granularity": granularity, "level": "layer"}),
        f"phatgoose {granularity}": (PhatgooseGate, {"granularity": granularity, "level": "model"}),
    }
GATES |= {
    "oracle": (OracleGate, {}),
    "task": (TaskGate, {}),
    "uniform": (UniformGate, {}),
}
# The second cache, running votes, and states that reach back: what must travel with the rows.
TRAVELLERS = (
    "linear prefix layer",
    "linear prompt site",
    "linear prefix model",
    "xlora token",
    "xlora by site prefix",
    "sequence prefix",
    "sequence prompt",
)
SELECTIONS = {
    "top-1": TopK(),
    "top-3": TopK(k=3),
    "softmax": Softmax(),
    "nucleus": TopP(p=0.6),
    "threshold": Threshold(threshold=0.15),
    "drawn": Sample(k=2),
}


def made(name, bank):
    kind, arguments = GATES[name]
    gate = trained_like(kind(bank.shape(WIDTH), **arguments))
    if isinstance(gate, RetrievalGate):
        gate.see(torch.randn(9, 1, WIDTH, generator=torch.Generator().manual_seed(1)), torch.arange(9))
    return gate


def generated(model, ids, mask=None, *, seed=5, **how):
    """New tokens; sampling starts from one seed."""
    torch.manual_seed(seed)
    mask = torch.ones_like(ids) if mask is None else mask
    how = {"max_new_tokens": 5, "eos_token_id": None, "do_sample": False} | how
    return model.generate(input_ids=ids, attention_mask=mask, **how)[:, ids.shape[1] :]


def both_ways(model, routed, ids, mask=None, **how):
    """With the cache, where the gate finds the prompt by itself, and without, where it must be told."""
    cached = generated(model, ids, mask, **how)
    prompt = torch.ones_like(ids) if mask is None else mask
    with routed.given(prompt=prompt.bool()):
        recomputed = generated(model, ids, mask, use_cache=False, **how)
    return cached, recomputed


DOMAIN = torch.tensor([3, 0, 8, 1])


@pytest.fixture
def left_padded(ids):
    mask = torch.ones_like(ids)
    mask[0, :4], mask[2, :1] = 0, 0
    return ids * mask, mask


@pytest.mark.parametrize("name", GATES)
def test_greedy_tokens_of_padded_rows_are_those_of_full_recomputation(llama, bank, left_padded, name):
    gate = made(name, bank)
    with attached(llama, bank, gate=gate, select=TopK(k=2)) as routed, routed.given(domain=DOMAIN):
        cached, recomputed = both_ways(llama, routed, *left_padded)
    assert torch.equal(cached, recomputed)
    assert not torch.equal(cached, generated(llama, *left_padded))


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("name", ["linear prefix layer"])
def test_every_selection_generates_what_full_recomputation_does(llama, bank, ids, name, select):
    with attached(llama, bank, gate=made(name, bank), select=SELECTIONS[select]) as routed:
        cached, recomputed = both_ways(llama, routed, ids)
    assert torch.equal(cached, recomputed)


@pytest.mark.parametrize("name", TRAVELLERS)
def test_sampled_tokens_are_those_of_full_recomputation_from_the_same_seed(llama, bank, left_padded, name):
    with attached(llama, bank, gate=made(name, bank), select=TopK(k=2)) as routed:
        cached, recomputed = both_ways(llama, routed, *left_padded, do_sample=True, num_return_sequences=2)
    assert cached.shape == (8, 5) and torch.equal(cached, recomputed)
    assert not torch.equal(cached[::2], cached[1::2])


@pytest.mark.parametrize("name", TRAVELLERS)
def test_beam_search_takes_votes_and_the_second_cache_along_with_its_beams(llama, bank, left_padded, name, monkeypatch):
    moved = []
    reorder = DynamicCache.reorder_cache
    monkeypatch.setattr(DynamicCache, "reorder_cache", lambda cache, to: (moved.append(to), reorder(cache, to))[1])
    with attached(llama, bank, gate=made(name, bank), select=TopK(k=2)) as routed:
        cached, recomputed = both_ways(llama, routed, *left_padded, num_beams=3, num_return_sequences=2)
    assert any(not torch.equal(to, torch.arange(len(to))) for to in moved)
    assert cached.shape == (8, 5) and torch.equal(cached, recomputed)


@pytest.mark.parametrize("name", TRAVELLERS)
def test_left_padding_does_not_change_what_is_generated(llama, bank, ids, name):
    padded = torch.cat([torch.zeros(4, 3, dtype=torch.long), ids], dim=1)
    mask = torch.cat([torch.zeros(4, 3, dtype=torch.long), torch.ones_like(ids)], dim=1)
    with attached(llama, bank, gate=made(name, bank), select=TopK()):
        assert torch.equal(generated(llama, ids), generated(llama, padded, mask))


@pytest.mark.parametrize("name", TRAVELLERS)
def test_a_static_cache_generates_what_a_growing_one_does(llama, bank, left_padded, name):
    with attached(llama, bank, gate=made(name, bank), select=TopK(k=2)):
        grown = generated(llama, *left_padded)
        for _ in range(2):
            assert torch.equal(generated(llama, *left_padded, cache_implementation="static"), grown)


def sliding_mistral():
    torch.manual_seed(0)
    return frozen(MistralForCausalLM(MistralConfig(**SIZES, sliding_window=5)))


def alternating_gemma():
    torch.manual_seed(0)
    sizes = SIZES | {"head_dim": 8, "query_pre_attn_scalar": 8}
    return frozen(Gemma2ForCausalLM(Gemma2Config(**sizes, sliding_window=5)))


@pytest.mark.parametrize("model", [sliding_mistral, alternating_gemma])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["linear prompt site", "sequence prefix"])
def test_a_model_whose_attention_slides_generates_what_full_recomputation_does(left_padded, model, cache, name):
    model = model()
    bank = ExpertBank([block(model, number) for number in range(8)])
    with attached(model, bank, gate=made(name, bank), select=TopK(k=2)) as routed:
        cached = generated(model, *left_padded, cache_implementation=None if cache == "dynamic" else cache)
        with routed.given(prompt=left_padded[1].bool()):
            assert torch.equal(cached, generated(model, *left_padded, use_cache=False))


def test_a_gate_that_looks_at_the_base_reads_each_token_once(llama, bank, ids):
    seen = []
    handle = llama.model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    with attached(llama, bank, gate=made("xlora token", bank), select=TopK()):
        generated(llama, ids)
    handle.remove()
    assert seen == [9, 9, *[1] * 8]


REPEATING = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6]])


@pytest.mark.parametrize("name", ["linear token site", "xlora token", "linear prompt site", "sequence prompt"])
@pytest.mark.parametrize("model", [tiny_llama, sliding_mistral])
def test_assisted_generation_says_what_plain_generation_says(name, model):
    model = model()
    bank = ExpertBank([block(model, number) for number in range(8)])
    with attached(model, bank, gate=made(name, bank), select=TopK(k=2)) as routed:
        plain = generated(model, REPEATING, max_new_tokens=9)
        with routed.given(prompt=torch.ones_like(REPEATING).bool()):
            assert torch.equal(generated(model, REPEATING, max_new_tokens=9, prompt_lookup_num_tokens=3), plain)


def test_drafts_behind_an_unmarked_prompt_are_refused(llama, bank):
    gate = made("sequence prompt", bank)
    with (
        attached(llama, bank, gate=gate, select=TopK()),
        pytest.raises(PmemxError, match="the last 3 tokens of this pass may be drafts"),
    ):
        generated(llama, REPEATING, prompt_lookup_num_tokens=3)


@pytest.mark.parametrize("name", ["linear prefix site", "sequence prefix"])
def test_a_running_vote_refuses_to_take_drafts_back(llama, bank, name):
    with (
        attached(llama, bank, gate=made(name, bank), select=TopK()),
        pytest.raises(PmemxError, match="a running vote cannot take tokens back"),
    ):
        generated(llama, REPEATING, prompt_lookup_num_tokens=3)


@pytest.mark.parametrize("name", ["linear prompt site", "xlora token", "sequence prefix"])
def test_rows_of_a_cache_that_are_repeated_and_selected_keep_their_own_decisions(llama, bank, ids, name):
    with attached(llama, bank, gate=made(name, bank), select=TopK(k=2)), torch.no_grad():
        cache = cache_of(llama(input_ids=ids, use_cache=True))
        expected = llama(input_ids=ids[:, :1], **{CACHE: cache}, use_cache=True).logits
        cache = cache_of(llama(input_ids=ids, use_cache=True))
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([7, 0, 3]))
        got = llama(input_ids=ids[[3, 0, 1], :1], **{CACHE: cache}, use_cache=True).logits
    assert (got - expected[[3, 0, 1]]).abs().max() < 1e-5
    assert (got[0] - got[1]).abs().max() > 1e-2


# What a cache was built under is what it may be used under.


def continued(model, cache, rows=4):
    with torch.no_grad():
        return model(input_ids=torch.full((rows, 1), 9), **{CACHE: cache}, use_cache=True)


def begun(model, ids):
    with torch.no_grad():
        return cache_of(model(input_ids=ids, use_cache=True))


@pytest.mark.parametrize("name", ["linear token site", "linear prompt site", "xlora token", "sequence prompt"])
def test_a_cache_of_other_active_experts_is_refused(llama, bank, ids, name):
    with attached(llama, bank, gate=made(name, bank), select=TopK()) as routed:
        cache = begun(llama, ids)
        routed.activate(["expert-1"])
        with pytest.raises(PmemxError, match="active experts or their weights changed"):
            continued(llama, cache)
        with routed.given(active=[["expert-2"]]):
            cache = begun(llama, ids)
            continued(llama, cache)
        with pytest.raises(PmemxError, match="active experts or their weights changed"):
            continued(llama, cache)
        with routed.given(active=[["expert-3"]]), pytest.raises(PmemxError, match="active experts"):
            continued(llama, cache)


def test_a_cache_of_other_weights_is_refused(llama, bank, ids):
    with attached(llama, bank, weights=[1.0] * 8) as routed:
        cache = begun(llama, ids)
        continued(llama, cache)
        routed.weigh([0.5] * 8)
        with pytest.raises(PmemxError, match="active experts or their weights changed"):
            continued(llama, cache)


def test_a_cache_that_knows_an_earlier_version_of_an_expert_is_refused(llama, bank, ids):
    with attached(llama, bank, gate=made("linear token site", bank), select=TopK()) as routed:
        cache = begun(llama, ids)
        routed.swap("expert-5", block(llama, 9))
        with pytest.raises(PmemxError, match="expert 'expert-5' was swapped"):
            continued(llama, cache)
        assert generated(llama, ids).shape == (4, 5)


def test_a_cache_of_other_profiles_is_refused_and_one_of_untouched_profiles_serves_on(llama, bank, ids):
    with attached(llama, bank) as routed:
        routed.define(Profile("law", {"expert-1": 1.0}))
        routed.define(Profile("medicine", {"expert-2": 1.0}))
        with routed.given(profiles=["law"]):
            cache = begun(llama, ids)
            routed.swap("expert-2", block(llama, 6))
            continued(llama, cache)
        with routed.given(profiles=["medicine"]), pytest.raises(PmemxError, match="the profiles of the rows changed"):
            continued(llama, cache)
        with routed.given(profiles=["law"]):
            routed.define(Profile("law", {"expert-1": 0.5}))
            with pytest.raises(PmemxError, match="the profiles of the rows changed"):
                continued(llama, cache)


def test_a_cache_of_another_number_of_rows_is_refused(llama, bank, ids):
    with attached(llama, bank, gate=made("linear token site", bank), select=TopK()):
        cache = begun(llama, ids)
        with pytest.raises(PmemxError, match="a cache of 4 rows is continued with 3"):
            continued(llama, cache, rows=3)


def test_a_cache_that_was_built_without_the_bank_is_refused(llama, bank, ids):
    cache = begun(llama, ids)
    with (
        attached(llama, bank, gate=made("linear token site", bank), select=TopK()),
        pytest.raises(PmemxError, match="built without the bank attached"),
    ):
        continued(llama, cache)


def test_a_cache_of_an_earlier_attachment_is_refused(llama, bank, blocks, ids):
    with attached(llama, bank, weights=[1.0] * 8):
        cache = begun(llama, ids)
    other = ExpertBank([*blocks[1:], blocks[0]])
    with attached(llama, other, weights=[1.0] * 8), pytest.raises(PmemxError, match="start generation anew"):
        continued(llama, cache)


def test_an_expert_that_is_swapped_during_generation_ends_it_with_an_error(llama, bank, ids):
    class SwapAtStep:
        def __init__(self, routed):
            self.routed, self.steps = routed, 0

        def __call__(self, input_ids, scores, **kwargs):
            self.steps += 1
            if self.steps == 3:
                self.routed.swap("expert-0", block(llama, 12))
            return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    with attached(llama, bank, gate=made("linear token site", bank), select=TopK()) as routed:
        criterion = SwapAtStep(routed)
        with pytest.raises(PmemxError, match="expert 'expert-0' was swapped"):
            generated(llama, ids, stopping_criteria=[criterion])
        assert criterion.steps == 3


def test_a_cache_that_is_emptied_may_begin_anew_under_other_experts(llama, bank, ids):
    static = StaticCache(config=llama.config, max_cache_len=32)
    gate = made("xlora token", bank)
    with attached(llama, bank, gate=gate, select=TopK()) as routed, torch.no_grad():
        llama(input_ids=ids, **{CACHE: static}, use_cache=True)
        static.reset()
        routed.activate(["expert-1"])
        fresh = llama(input_ids=ids, use_cache=False).logits
        assert (llama(input_ids=ids, **{CACHE: static}, use_cache=True).logits - fresh).abs().max() < 1e-5
        assert routing_layer(static) is static.layers[-1] and len(static.layers) == 3


def test_ids_of_the_whole_vocabulary_are_generated(llama, bank):
    many = torch.arange(3, VOCAB)[:, None].expand(-1, 4)
    with attached(llama, bank, gate=made("sequence prompt", bank), select=TopK()) as routed:
        cached, recomputed = both_ways(llama, routed, many)
    assert torch.equal(cached, recomputed) and cached.unique().numel() > 20
