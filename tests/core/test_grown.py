"""A gate for a larger bank keeps what it learnt, by the names of the experts, and says no where that would mean nothing."""

from dataclasses import replace

import pytest
import torch

from pmemx.core.bank import BankShape
from pmemx.core.block import LoraFactors
from pmemx.core.errors import IncompatibleBlock
from pmemx.core.gate import Gate
from pmemx.core.grown import grown
from pmemx.gate.arrow import ArrowGate
from pmemx.gate.linear import LinearGate
from pmemx.gate.nearest_neighbours import NearestNeighboursGate
from pmemx.gate.retrieval import RetrievalGate
from pmemx.gate.router_lora import RouterLoraGate
from pmemx.gate.tracking import TrackingGate

SITES = {"model.layers.0.mlp.up_proj": 8, "model.layers.0.mlp.down_proj": 12}
OLD = BankShape(("law", "botany", "sums"), SITES, 8)
NEW = BankShape(("sums", "art", "law", "tax", "botany"), SITES, 8)
PLACES = [0, 3, 5, 1]
"""Of the old choices among the new."""


def seen(shape: BankShape = OLD) -> RetrievalGate:
    gate = RetrievalGate(shape)
    choices = torch.arange(shape.num_choices).repeat(3)
    gate.see(torch.randn(len(choices), 1, 8, generator=torch.Generator().manual_seed(0)), choices)
    return gate.eval()


def trained(shape: BankShape = OLD) -> RouterLoraGate:
    gate = RouterLoraGate(shape)
    torch.manual_seed(0)
    for parameter in gate.parameters():
        parameter.data.normal_()
    return gate


def test_rows_go_by_the_names_of_the_experts_and_new_ones_are_empty():
    gate, larger = seen(), grown(seen(), RetrievalGate(NEW))
    for key in ("total", "count"):
        before, after = gate.get_buffer(key), larger.get_buffer(key)
        assert torch.equal(after[PLACES], before) and not after[[2, 4]].any()
    assert larger.shape == NEW and not larger.training


def test_it_can_learn_the_new_experts_and_then_knows_what_one_for_all_would():
    larger, whole = grown(seen(), RetrievalGate(NEW)), RetrievalGate(NEW)
    said, choices = torch.randn(12, 1, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4).repeat(3)
    whole.see(said, torch.tensor(PLACES)[choices])
    more = torch.randn(6, 1, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([2, 4, 2, 4, 2, 4])
    for gate in (larger, whole):
        gate.see(*more)
    assert all(torch.equal(a, b) for a, b in zip(larger.buffers(), whole.buffers(), strict=True))


def test_weights_that_know_no_expert_stay_as_they_are():
    gate = trained().train()
    larger = grown(gate, RouterLoraGate(NEW))
    for (name, before), after in zip(gate.named_parameters(), larger.parameters(), strict=True):
        assert torch.equal(before, after), name
    assert larger.training
    # What the gate reads of the experts is read again from the larger bank.
    assert all(not value.any() for name, value in larger.named_buffers() if name.startswith(("up", "down")))


def test_a_gate_that_reads_factors_alone_grows_by_reading_them():
    larger = grown(ArrowGate(OLD), ArrowGate(NEW))
    factors = {site: LoraFactors(torch.ones(1, width), torch.ones(4, 1), 1.0) for site, width in SITES.items()}
    larger.read_expert(4, factors)
    assert larger(next(iter(SITES)), torch.ones(1, 1, 8)).shape == (1, 1, 6)


def test_the_old_gate_and_the_new_one_share_no_number():
    gate = trained()
    kept = [parameter.clone() for parameter in gate.parameters()]
    for parameter in grown(gate, RouterLoraGate(NEW)).parameters():
        parameter.data.zero_()
    assert all(torch.equal(a, b) for a, b in zip(kept, gate.parameters(), strict=True))


REFUSED: list[tuple[Gate, Gate, str]] = [
    (
        LinearGate(OLD),
        LinearGate(NEW),
        "what LinearGate learnt holds for the experts that it was trained with; .* 5 experts",
    ),
    (seen(), NearestNeighboursGate(NEW), "what RetrievalGate learnt holds for the experts"),
    (seen(), RetrievalGate(replace(NEW, sites={"other": 8})), "adapts other sites, .* or is of another base"),
    (seen(), RetrievalGate(replace(NEW, width=16)), "adapts other sites, .* or is of another base"),
    (trained(), RouterLoraGate(replace(NEW, sites=dict(reversed(SITES.items())))), "or the same in another order"),
    (seen(NEW), RetrievalGate(OLD), "the larger bank lacks 'art', which the gate knows"),
    (trained(), RouterLoraGate(NEW, rank=4), r"the gates differ in 'queries\.0'"),
    (NearestNeighboursGate(OLD, capacity=5), NearestNeighboursGate(NEW, capacity=6), "the gates differ in 'examples'"),
    (TrackingGate(OLD, bits=8), TrackingGate(NEW, bits=9), "the gates differ in 'directions'"),
    (TrackingGate(OLD, window=1), TrackingGate(NEW, window=2), "the gates differ in 'factors'"),
    (TrackingGate(OLD, buckets=64), TrackingGate(NEW, buckets=32), "the gates differ in 'evidence'"),
]


@pytest.mark.parametrize(("gate", "built", "message"), REFUSED, ids=[message[:40] for *_, message in REFUSED])
def test_what_would_mean_nothing_is_refused_and_changes_neither_gate(gate, built, message):
    before = [{key: value.clone() for key, value in one.state_dict().items()} for one in (gate, built)]
    with pytest.raises(IncompatibleBlock, match=message):
        grown(gate, built)
    for one, state in zip((gate, built), before, strict=True):
        assert all(torch.equal(value, one.state_dict()[key]) for key, value in state.items())
