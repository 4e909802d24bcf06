"""The trace of routing: by hand, its laws, and that it adds up however passes are cut."""

import json
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pmemx.core.bank import ExpertBank
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.errors import PmemxError
from pmemx.core.routing import Observation, Routing
from pmemx.core.trace import RoutingTrace
from pmemx.select.softmax import Softmax
from pmemx.select.top_k import TopK

EXPERTS = ("law", "medicine", "sport")


def seen(share, *, site="up", attended=None, prompt=None, domain=None, select=None, width=None) -> Observation:
    """An observation of the shares [batch, decision, choice], routed by select."""
    scores = torch.as_tensor(share).log()
    batch, token = scores.shape[0], width or scores.shape[1]
    attended = torch.ones(batch, token, dtype=torch.bool) if attended is None else torch.tensor(attended)
    return Observation(
        site,
        scores,
        (select or Softmax())(scores),
        attended,
        attended if prompt is None else torch.tensor(prompt),
        None if domain is None else torch.tensor(domain),
    )


def random_pass(seed: int, *, batch: int = 6, token: int = 5, site: str = "up", select=None) -> Observation:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, token, 4, generator=generator) * 2
    return Observation(
        site,
        scores,
        (select or TopK(k=2))(scores),
        torch.rand(batch, token, generator=generator) < 0.8,
        torch.rand(batch, token, generator=generator) < 0.5,
        torch.randint(-1, 4, (batch,), generator=generator),
    )


def same(one: RoutingTrace, other: RoutingTrace) -> bool:
    return one.sites == other.sites and all(
        torch.allclose(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-12)
        for name in ("decisions", "load", "confusion", "entropy", "margin", "switch_rate")
    )


def test_one_pass_by_hand():
    trace = RoutingTrace(EXPERTS)
    sure, split, last = [0.0, 1.0, 0.0, 0.0], [0.5, 0.0, 0.25, 0.25], [0.1, 0.2, 0.3, 0.4]
    trace(
        seen(
            [[sure, split, last], [last, sure, sure]], attended=[[True, True, True], [True, True, False]], domain=[1, 3]
        )
    )
    assert trace.sites == ("up",) and trace.decisions.tolist() == [5.0]
    assert trace.load[0].tolist() == pytest.approx([0.7 / 5, 2.4 / 5, 0.85 / 5, 1.05 / 5], abs=1e-7)
    entropy_of_last = -sum(p * math.log(p) for p in last)
    assert trace.entropy.tolist() == pytest.approx([(1.5 * math.log(2) + 2 * entropy_of_last) / 5], abs=1e-6)
    assert trace.margin.tolist() == pytest.approx([(1 + 0.25 + 0.1 + 0.1 + 1) / 5], abs=1e-6)
    # The greatest weights: 1, 0, 3 and 3, 1; two changes in the first row, one in the second.
    assert trace.switch_rate.tolist() == [1.0]
    third = pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])
    assert trace.confusion.tolist() == [[0, 0, 0, 0], third, [0, 0, 0, 0], [0, 0.5, 0, 0.5]]


def test_load_is_of_the_routing_and_entropy_of_the_gate():
    trace = RoutingTrace(EXPERTS)
    trace(seen([[[0.1, 0.2, 0.3, 0.4]]], select=TopK()))
    assert trace.load.tolist() == [[0.0, 0.0, 0.0, 1.0]]
    assert trace.entropy.item() > 1 and trace.margin.item() == pytest.approx(0.1)


def test_a_uniform_gate_has_the_entropy_of_reference_and_a_sure_gate_none():
    uniform, sure = RoutingTrace(EXPERTS), RoutingTrace(EXPERTS)
    uniform(seen(torch.full((2, 3, 4), 0.25)))
    assert uniform.uniform_entropy.tolist() == [math.log(len(EXPERTS) + 1)]
    assert uniform.entropy.tolist() == pytest.approx(uniform.uniform_entropy.tolist())
    assert uniform.margin.tolist() == pytest.approx([0.0])
    sure(seen(torch.eye(4)[[2, 2, 2]][None]))
    assert (sure.entropy.item(), sure.margin.item(), sure.switch_rate.item()) == (0.0, 1.0, 0.0)


def test_one_decision_for_a_row_counts_once_and_never_switches():
    trace = RoutingTrace(EXPERTS)
    share = [[[0.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0, 0.0]]]
    attended = [[True] * 5, [False, True, True, False, False], [False] * 5]
    trace(seen(share, attended=attended, domain=[1, -1, 0], width=5))
    assert trace.decisions.tolist() == [2.0]
    assert trace.load.tolist() == [[0.0, 0.5, 0.5, 0.0]]
    assert trace.switch_rate.tolist() == [0.0]
    assert trace.confusion.sum().item() == 1.0 and trace.confusion[1, 1].item() == 1.0


def test_neighbours_across_a_gap_are_none():
    trace = RoutingTrace(EXPERTS)
    one, other = [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]
    trace(seen([[one, other, other, one]], attended=[[True, False, True, True]]))
    assert trace.switch_rate.tolist() == [1.0]
    trace(seen([[one, one, one, one]], attended=[[True, False, True, True]]))
    assert trace.switch_rate.tolist() == [0.5]


def test_only_the_prompt_counts_if_asked():
    trace = RoutingTrace(EXPERTS, prompt_only=True)
    one, other = [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]
    trace(seen([[one, one, other]], prompt=[[True, True, False]], domain=[1]))
    assert trace.decisions.tolist() == [2.0]
    assert trace.load.tolist() == [[0.0, 1.0, 0.0, 0.0]]
    assert trace.switch_rate.tolist() == [0.0]
    trace(seen([[one]], prompt=[[False]], domain=[1]))
    assert trace.decisions.tolist() == [2.0]


def test_fixed_weights_are_measured_themselves():
    trace = RoutingTrace(EXPERTS)
    always = torch.ones(2, 4, dtype=torch.bool)
    weight = torch.tensor([0.5, 0.25]).expand(2, 1, 2)
    routing = Routing(torch.tensor([0, 2]).expand(2, 1, 2), weight, 3)
    trace(Observation("up", None, routing, always, always, None))
    assert trace.decisions.tolist() == [2.0]
    assert trace.load.tolist() == [[0.25, 0.5, 0.0, 0.25]]
    assert trace.entropy.tolist() == pytest.approx([1.5 * math.log(2)])
    assert trace.margin.tolist() == [0.25]


def test_fixed_weights_beyond_one_leave_nothing_to_no_expert():
    trace = RoutingTrace(EXPERTS)
    always = torch.ones(5, 4, dtype=torch.bool)
    trace(Observation("up", None, Routing.of_weights(torch.ones(1, 1, 3)), always, always, None))
    assert trace.decisions.tolist() == [5.0]
    assert trace.load.tolist() == [[0.0, 1.0, 1.0, 1.0]]
    assert trace.entropy.tolist() == pytest.approx([math.log(3)])


def test_fixed_weights_below_zero_are_loads_and_no_shares():
    trace = RoutingTrace(EXPERTS)
    always = torch.ones(1, 1, dtype=torch.bool)
    trace(Observation("up", None, Routing.of_weights(torch.tensor([[[1.0, 1.0, -1.0]]])), always, always, None))
    assert trace.load.tolist() == [[0.0, 1.0, 1.0, -1.0]]
    assert trace.entropy.tolist() == pytest.approx([math.log(2)])


def test_a_gate_that_knows_fewer_experts_than_the_bank_holds_is_measured_by_its_own_choices():
    trace = RoutingTrace(("spare", *EXPERTS), domains=("none", *EXPERTS))
    scores, always = torch.zeros(1, 1, 4), torch.ones(1, 1, dtype=torch.bool)
    routing = Routing(torch.tensor([[[3]]]), torch.ones(1, 1, 1), 4)
    trace(Observation("up", scores, routing, always, always, torch.tensor([3])))
    assert trace.entropy.tolist() == pytest.approx(trace.uniform_entropy.tolist())
    assert trace.uniform_entropy.tolist() == [math.log(4)]
    assert trace.summary()["confusion"] == {
        "sport": {"no_expert": 0.0, "spare": 0.0, "law": 0.0, "medicine": 0.0, "sport": 1.0}
    }


def test_a_bank_with_a_free_slot_is_traced_by_the_names_of_its_slots():
    factors = {"up": LoraFactors(torch.ones(1, 2), torch.ones(2, 1), 1.0)}
    bank = ExpertBank([CapabilityBlock(BlockCard(name, name, ""), factors) for name in EXPERTS], spare=1)
    bank.unload("medicine")
    trace = RoutingTrace(bank.slot_names, domains=("no_expert", *bank.names))
    scores, always = torch.zeros(1, 1, 3), torch.ones(1, 1, dtype=torch.bool)
    routing = Routing(torch.tensor([[[2]]]), torch.ones(1, 1, 1), len(bank))
    trace(Observation("up", scores, routing, always, always, torch.tensor([2])))
    load = {"no_expert": 0.0, "law": 0.0, "free slot 1": 0.0, "sport": 1.0, "free slot 3": 0.0}
    assert trace.summary()["load"] == {"up": load} and trace.summary()["confusion"] == {"sport": load}
    with pytest.raises(PmemxError, match=r"is of 2 slots, but up chose among 4; make it with bank\.slot_names"):
        RoutingTrace(bank.names)(Observation("up", scores, routing, always, always, None))


def test_padding_may_hold_anything():
    clean, dirty = RoutingTrace(EXPERTS), RoutingTrace(EXPERTS)
    share = torch.full((1, 3, 4), 0.25)
    clean(seen(share[:, :2]))
    share[:, 2] = math.nan
    dirty(seen(share, attended=[[True, True, False]]))
    assert same(clean, dirty)


def test_how_rows_are_batched_does_not_matter():
    whole, rows = RoutingTrace(EXPERTS), RoutingTrace(EXPERTS)
    for seed in range(3):
        o = random_pass(seed)
        whole(o)
        for i in range(6):
            part = slice(i, i + 1)
            assert o.scores is not None and o.domain is not None
            routing = Routing(o.routing.index[part], o.routing.weight[part], 3)
            rows(Observation(o.site, o.scores[part], routing, o.attended[part], o.prompt[part], o.domain[part]))
    assert same(whole, rows)


@pytest.mark.parametrize("prompt_only", [False, True])
def test_traces_add_up(prompt_only):
    one, other, both = (RoutingTrace(EXPERTS, prompt_only=prompt_only) for _ in range(3))
    for seed, site in enumerate(["up", "down", "up", "gate"]):
        observation = random_pass(seed, site=site)
        (one if seed % 2 == 0 else other)(observation)
    for seed, site in [(0, "up"), (2, "up"), (1, "down"), (3, "gate")]:
        both(random_pass(seed, site=site))
    assert same(one + other, both)
    assert same(both + RoutingTrace(EXPERTS, prompt_only=prompt_only), both)
    assert one.sites == ("up",)


def test_traces_of_different_things_do_not_add_up():
    with pytest.raises(PmemxError, match=r"traces with choices .* do not add up; make both alike"):
        RoutingTrace(EXPERTS) + RoutingTrace(EXPERTS[::-1])
    with pytest.raises(PmemxError, match="prompt_only False and True"):
        RoutingTrace(EXPERTS) + RoutingTrace(EXPERTS, prompt_only=True)


def test_threads_may_share_a_trace():
    alone, shared = RoutingTrace(EXPERTS), RoutingTrace(EXPERTS)
    passes = [random_pass(seed) for seed in range(64)]
    for observation in passes:
        alone(observation)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(shared, passes))
    assert same(alone, shared)


def test_a_trace_does_not_grow_with_passes():
    trace = RoutingTrace(EXPERTS)

    def size() -> int:
        held = [*trace._sites.values(), trace._confusion]
        return sum(tensor.untyped_storage().nbytes() for tensor in held)

    trace(random_pass(0))
    first = size()
    for seed in range(20):
        trace(random_pass(seed, batch=3 + seed, token=30))
    assert size() == first
    assert not any(tensor.requires_grad for tensor in (*trace._sites.values(), trace._confusion))


def test_a_trace_keeps_no_gradient():
    trace = RoutingTrace(EXPERTS)
    scores = torch.zeros(1, 2, 4, requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    trace(Observation("up", scores, Softmax()(scores), mask, mask, None))
    assert not trace.load.requires_grad and not trace.entropy.requires_grad


def test_a_bank_of_another_size_is_refused():
    with pytest.raises(PmemxError, match=r"is of 2 slots, but up chose among 3; make it with bank\.slot_names"):
        RoutingTrace(EXPERTS[:2])(random_pass(0))


def test_the_summary_is_json_and_speaks_of_what_was_seen():
    trace = RoutingTrace(EXPERTS)
    trace(seen([[[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]], domain=[1]))
    trace(seen([[[0.25, 0.25, 0.25, 0.25]] * 2], site="down"))
    summary = json.loads(json.dumps(trace.summary(), allow_nan=False))
    assert summary == {
        "decisions": 4,
        "entropy": pytest.approx(math.log(4) / 2),
        "uniform_entropy": math.log(4),
        "margin": pytest.approx(0.5),
        "switch_rate": 0.5,
        "load": {
            "up": {"no_expert": 0.0, "law": 0.5, "medicine": 0.5, "sport": 0.0},
            "down": {"no_expert": 0.25, "law": 0.25, "medicine": 0.25, "sport": 0.25},
        },
        "confusion": {"law": {"no_expert": 0.0, "law": 0.5, "medicine": 0.5, "sport": 0.0}},
    }


def test_an_empty_trace_says_that_nothing_was_seen():
    trace = RoutingTrace(EXPERTS)
    assert trace.load.shape == (0, 4) and trace.entropy.shape == (0,) and not trace.confusion.any()
    assert trace.summary() | {"uniform_entropy": 0.0} == {
        "decisions": 0,
        "entropy": 0.0,
        "uniform_entropy": 0.0,
        "margin": 0.0,
        "switch_rate": 0.0,
        "load": {},
        "confusion": {},
    }
