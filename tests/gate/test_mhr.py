"""Multi-head routing gives PEFT's numbers for eight skills in four splits, and with one head it is Polytropon."""

import pytest
import torch
from kv_cache import CACHE, cache_of
from torch.nn import functional as F

from pmemx.core.bank import BankShape, ExpertBank
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.errors import ConfigError, IncompatibleBlock
from pmemx.core.profile import Profile
from pmemx.core.routing import Observation
from pmemx.core.trace import RoutingTrace
from pmemx.gate.mhr import MultiHeadGate
from pmemx.gate.polytropon import PolytroponGate
from pmemx.runtime.attach import attached
from pmemx.select.softmax import Softmax
from pmemx.select.top_k import TopK
from tests.gate.test_polytropon import bank_of, logits_of, peft_model, poly_layers

TASKS = torch.tensor([4, 1, 8, 4])
HEADS = 4


def gate_of(bank: ExpertBank, heads: int = HEADS, **settings) -> MultiHeadGate:
    gate = MultiHeadGate(bank.shape(32), heads=heads, **settings).eval()
    gate.logits.data.normal_(std=1.5, generator=torch.Generator().manual_seed(1))
    return gate


def run(llama, bank, gate, ids, mixing="before") -> torch.Tensor:
    with (
        torch.no_grad(),
        attached(llama, bank, gate=gate, select=Softmax(), mixing=mixing) as routed,
        routed.given(domain=TASKS),
    ):
        return routed.model(input_ids=ids).logits


@pytest.mark.parametrize("mixing", ["before", "after"])
def test_heads_that_agree_are_polytropon(llama, bank, ids, mixing):
    poly = PolytroponGate(bank.shape(32)).eval()
    poly.logits.data.normal_(std=1.5)
    gate = gate_of(bank)
    gate.logits.data = poly.logits.data[:, :, None].expand_as(gate.logits).clone()
    ours, expected = run(llama, bank, gate, ids, mixing), run(llama, bank, poly, ids, mixing)
    assert (ours - expected).abs().max() < 1e-5
    assert (ours - run(llama, bank, gate_of(bank), ids, mixing)).abs().max() > 1e-2


def test_every_head_keeps_its_own_best_experts(llama, bank, ids):
    gate = gate_of(bank)
    seen: list[Observation] = []
    with (
        torch.no_grad(),
        attached(llama, bank, gate=gate, select=TopK(k=2), mixing="before") as routed,
        routed.observed(seen.append),
        routed.given(domain=TASKS),
    ):
        routed.model(input_ids=ids)
    assert len(seen) == len(bank.site_names)
    for observation in seen:
        place = list(gate.shape.sites).index(observation.site)
        wanted = torch.sigmoid(gate.logits.detach()[TASKS - 1, place])
        kept = wanted >= wanted.topk(2, dim=-1).values[..., -1:]
        share = torch.where(kept, wanted, 0.0)
        share = share / share.sum(dim=-1, keepdim=True)
        assert torch.allclose(observation.routing.heads[:, 0].mT, share, atol=1e-6)
        assert torch.allclose(observation.routing.dense()[:, 0], share.mean(dim=1), atol=1e-6)


class TestPeft:
    def made(self, llama):
        theirs = peft_model(llama, splits=HEADS)
        bank = bank_of(theirs)
        gate = MultiHeadGate(bank.shape(32), heads=HEADS).eval()
        gate.logits.data = logits_of(theirs, bank).unflatten(2, (HEADS, -1))
        return theirs, bank, gate

    def test_logits(self, llama, ids):
        theirs, bank, gate = self.made(llama)
        with torch.no_grad():
            expected = theirs(input_ids=ids, task_ids=TASKS - 1).logits
        ours = run(llama, bank, gate, ids)
        assert (ours - expected).abs().max() < 1e-5
        with torch.no_grad():
            assert (ours - llama(input_ids=ids).logits).abs().max() > 0.1

    def test_gradients_of_the_allocation(self, llama, ids):
        theirs, bank, gate = self.made(llama)
        labels = ids[:, 1:].flatten()
        F.cross_entropy(theirs(input_ids=ids, task_ids=TASKS - 1).logits[:, :-1].flatten(0, 1), labels).backward()
        with (
            attached(llama, bank, gate=gate, select=Softmax(), mixing="before") as routed,
            routed.given(domain=TASKS),
        ):
            F.cross_entropy(routed.model(input_ids=ids).logits[:, :-1].flatten(0, 1), labels).backward()
        layers = poly_layers(theirs)
        expected = torch.stack([layers[s].poly_router["default"].module_logits.grad for s in bank.site_names], dim=1)
        assert (gate.logits.grad.flatten(2) - expected).norm() / expected.norm() < 1e-5


class TestEngine:
    def test_a_row_that_may_not_use_an_expert_has_it_in_no_head(self, llama, bank, ids):
        gate = gate_of(bank)
        trace = RoutingTrace(bank.slot_names)
        with (
            torch.no_grad(),
            attached(llama, bank, gate=gate, select=Softmax(), mixing="before") as routed,
            routed.observed(trace),
            routed.given(domain=TASKS, active=[bank.names[:2]]),
        ):
            routed.model(input_ids=ids)
        assert trace.load[:, 3:].eq(0).all() and torch.allclose(trace.load[:, 1:3].sum(dim=1), torch.ones(8).double())

    def test_a_profile_stands_in_every_head_of_its_row(self, llama, bank, ids):
        gate = gate_of(bank)
        alone = run(llama, bank, gate, ids)
        with torch.no_grad(), attached(llama, bank, gate=gate, select=Softmax(), mixing="before") as routed:
            routed.define(Profile("both", {"expert-1": 0.5, "expert-6": -0.25}))
            with routed.given(domain=TASKS, profiles=[None, "both", None, "both"]):
                mixed = routed.model(input_ids=ids).logits
        with torch.no_grad(), attached(llama, bank, weights=[0, 0.5, 0, 0, 0, 0, -0.25, 0], mixing="before") as routed:
            fixed = routed.model(input_ids=ids).logits
        assert (mixed[::2] - alone[::2]).abs().max() < 1e-5 and (mixed[1::2] - fixed[1::2]).abs().max() < 1e-5

    def test_experts_in_other_slots_are_the_same_experts(self, llama, bank, ids):
        gate = gate_of(bank)
        blocks = [
            CapabilityBlock(BlockCard(name=n, domain="d", base=""), bank.factors(n)) for n in reversed(bank.names)
        ]
        assert (run(llama, ExpertBank(blocks), gate, ids) - run(llama, bank, gate, ids)).abs().max() < 1e-5

    @pytest.mark.parametrize("granularity", ["prompt", "token"])
    def test_rows_that_change_places_in_a_cache_take_their_heads_along(self, llama, bank, ids, granularity):
        gate, order = gate_of(bank, granularity=granularity), torch.tensor([2, 0, 3, 3])
        with torch.no_grad(), attached(llama, bank, gate=gate, select=Softmax(), mixing="before") as routed:
            with routed.given(domain=TASKS):
                out = routed.model(input_ids=ids[:, :6], use_cache=True)
            cache_of(out).reorder_cache(order)
            with routed.given(domain=TASKS[order]):
                rest = routed.model(input_ids=ids[order, 6:7], **{CACHE: cache_of(out)}, use_cache=True)
        assert (rest.logits[:, 0] - run(llama, bank, gate, ids)[order, 6]).abs().max() < 1e-5


def test_heads_that_do_not_divide_a_site_are_refused_early(llama, bank):
    with pytest.raises(ConfigError, match=r"gate\.heads = 5 does not divide the 48 inputs of 'model.*down_proj"):
        MultiHeadGate(bank.shape(32), heads=5)
    with pytest.raises(ConfigError, match=r"gate\.heads = 0"):
        MultiHeadGate(bank.shape(32), heads=0)
    site = "model.layers.0.mlp.up_proj"
    uneven = ExpertBank(
        [
            CapabilityBlock(
                BlockCard(name="e", domain="d", base=""), {site: LoraFactors(torch.ones(1, 32), torch.ones(48, 1), 1.0)}
            )
        ]
    )
    gate = MultiHeadGate(BankShape(("e",), {site: 32}, 32), heads=32)
    with (
        pytest.raises(IncompatibleBlock, match=r"up_proj' maps 32 to 48, which 32 heads do not divide"),
        attached(llama, uneven, gate=gate, select=Softmax(), mixing="before"),
    ):
        pass
