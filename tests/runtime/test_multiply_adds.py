"""Multiply-adds are those of the products that a pass makes, counted by hand, padding and the gate's own look included."""

import pytest
import torch
from tiny_models import SIZES, VOCAB, WIDTH, tiny_llama, trained_like
from transformers import LlamaForCausalLM

from pmemx.core.bank import ExpertBank
from pmemx.core.encoding import Encoded
from pmemx.gate.linear import LinearGate
from pmemx.gate.oracle import OracleGate
from pmemx.runtime.attach import attached
from pmemx.runtime.cost import multiply_adds
from pmemx.select.softmax import Softmax
from pmemx.select.top_k import TopK

# Groups of two rows of 7 tokens and of three rows of 5, padding included.
GROUPS = [
    ([Encoded((5, 6, 7, 8, 9, 10, 11), 4), Encoded((12, 13, 14), 2)], 1),
    ([Encoded((20, 21, 22, 23, 24), 3), Encoded((25, 26), 1), Encoded((27, 28, 29), 1)], 2),
]
SHAPES = [(2, 7), (3, 5)]
TOKENS = 2 * 7 + 3 * 5
HEADS, LAYERS, HEAD = SIZES["num_attention_heads"], SIZES["num_hidden_layers"], 8
BODY_LINEARS = LAYERS * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
HEAD_LINEAR = WIDTH * VOCAB


@pytest.fixture(scope="module")
def eager() -> LlamaForCausalLM:
    """Attention as two products that every counter sees."""
    return tiny_llama(attn_implementation="eager")


def attention() -> int:
    """Of every head the products of q with k and of their weights with v."""
    return sum(LAYERS * 2 * rows * HEADS * length * length * HEAD for rows, length in SHAPES)


def body() -> int:
    return TOKENS * BODY_LINEARS + attention()


def added(model: LlamaForCausalLM, bank: ExpertBank, groups=GROUPS, **how) -> float:
    """What experts and gate add to the base."""
    alone = multiply_adds(model, groups, pad=0)
    with attached(model, bank, **how) as routed:
        return multiply_adds(model, groups, pad=0, routed=routed) - alone


def of_rows(bank: ExpertBank, rows: dict[str, int]) -> int:
    """Through A and B of so many rows at every site."""
    return TOKENS * sum(rows[name] * (site.width_in + site.width_out) for name, site in bank.items())


def test_the_base_by_hand(eager):
    assert multiply_adds(eager, GROUPS, pad=0) == body() + TOKENS * HEAD_LINEAR


def test_groups_add_up_and_whether_gradients_are_recorded_does_not_matter(eager):
    apart = [multiply_adds(eager, [group], pad=0) for group in GROUPS]
    assert multiply_adds(eager, GROUPS, pad=0) == sum(apart)
    with torch.enable_grad():
        assert multiply_adds(eager, GROUPS, pad=0) == sum(apart)


def test_how_attention_is_computed_does_not_matter(eager, llama):
    assert multiply_adds(llama, GROUPS, pad=0) == multiply_adds(eager, GROUPS, pad=0)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_one_expert_adds_its_rank_times_both_widths_at_each_of_its_sites(eager, blocks, number):
    bank = ExpertBank([blocks[number]])
    exact = TOKENS * sum(
        factors.rank * (factors.A.shape[1] + factors.B.shape[0]) for factors in blocks[number].factors.values()
    )
    assert added(eager, bank, weights=[0.5]) == exact
    assert (
        added(eager, bank, [(rows, 1) for rows, _ in GROUPS], gate=OracleGate(bank.shape(WIDTH)), select=TopK())
        == exact
    )


def test_one_expert_of_eight_for_a_sequence_adds_the_largest_rank_of_the_site(eager, bank):
    """Rows of a batch may choose different experts, so every one is filled up to the widest."""
    found = added(eager, bank, gate=OracleGate(bank.shape(WIDTH)), select=TopK())
    assert found == of_rows(bank, {name: site.layout.widest for name, site in bank.items()})


def test_the_sum_of_all_adds_the_ranks_of_all(eager, bank):
    assert added(eager, bank, weights=[0.5] * 8) == of_rows(bank, {n: site.layout.num_rows for n, site in bank.items()})


def test_a_row_without_an_expert_adds_nothing(eager, bank):
    groups = [(rows, 0) for rows, _ in GROUPS]
    assert added(eager, bank, groups, gate=OracleGate(bank.shape(WIDTH)), select=TopK()) == 0
    assert added(eager, bank, weights=[0.0] * 8) == 0


def test_a_gate_at_every_site_adds_its_own_matrix(eager, bank):
    gate = trained_like(LinearGate(bank.shape(WIDTH), granularity="token"))
    scored = TOKENS * sum(site.width_in * 9 for _, site in bank.items())
    mixed = of_rows(bank, {name: site.layout.num_rows for name, site in bank.items()})
    assert added(eager, bank, gate=gate, select=Softmax()) == scored + mixed


def test_a_gate_that_looks_ahead_adds_a_pass_of_the_body(eager, bank):
    gate = trained_like(LinearGate(bank.shape(WIDTH), granularity="prompt", level="model"))
    scored = TOKENS * sum(site.width_in * 9 for _, site in bank.items())
    mixed = of_rows(bank, {name: site.layout.num_rows for name, site in bank.items()})
    assert added(eager, bank, gate=gate, select=Softmax()) == body() + scored + mixed
