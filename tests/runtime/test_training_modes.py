"""Training through frozen experts: the same gradients with and without checkpointed layers, and those of plain algebra."""

import pytest
import torch
from tiny_models import VOCAB, WIDTH, block, logits, tiny_llama, trained_like
from torch import nn

from pmemx.core.bank import ExpertBank, Layout
from pmemx.core.errors import PmemxError
from pmemx.core.mix import DenseMix, SegmentMix, SequenceMix
from pmemx.core.product import DenseProduct, GatheredProduct, SegmentedProduct
from pmemx.core.routing import Routing
from pmemx.gate.linear import LinearGate
from pmemx.gate.oracle import OracleGate
from pmemx.gate.sequence import SequenceGate
from pmemx.gate.xlora import XLoraGate
from pmemx.runtime.attach import attached
from pmemx.select.softmax import Softmax
from pmemx.select.top_k import TopK

GATES = {
    "site by token": lambda shape: LinearGate(shape, granularity="token"),
    "site by prompt": lambda shape: LinearGate(shape, granularity="prompt"),
    "layer by prefix": lambda shape: LinearGate(shape, granularity="prefix", level="layer"),
    "model by prompt": lambda shape: LinearGate(shape, level="model"),
    "context by prompt": lambda shape: SequenceGate(shape, filters=8),
    "context by token": lambda shape: XLoraGate(shape, dropout=0.0),
    "context by site": lambda shape: XLoraGate(shape, layerwise=True, dropout=0.0),
}
SELECTIONS = {"softmax": Softmax(), "top-2": TopK(k=2)}


@pytest.fixture
def training():
    """A frozen model in training mode: only there does transformers checkpoint."""
    return tiny_llama().train()


def loss_of(model, ids):
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False).loss


def grads_of(gate):
    return {name: parameter.grad.clone() for name, parameter in gate.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("name", GATES)
def test_checkpointed_layers_give_the_same_loss_and_gradients(training, bank, ids, name, select):
    gate = trained_like(GATES[name](bank.shape(WIDTH)))
    passes = []
    layer = training.model.layers[0].mlp.up_proj
    handle = layer.register_forward_pre_hook(lambda module, args: passes.append(1))
    found = []
    with attached(training, bank, gate=gate, select=SELECTIONS[select]):
        for checkpointed in (False, True):
            if checkpointed:
                training.activation_checkpointing_enable()
            gate.zero_grad()
            passes.clear()
            loss = loss_of(training, ids)
            first = len(passes)
            loss.backward()
            found.append((loss.detach(), grads_of(gate), len(passes) - first))
    handle.remove()
    (loss, grads, again), (loss_too, grads_too, again_too) = found
    assert (again, again_too) == (0, 1)
    assert torch.equal(loss, loss_too) and grads.keys() == grads_too.keys()
    assert max(float(grad.abs().max()) for grad in grads.values()) > 1e-4
    assert all(torch.allclose(grads[name], grads_too[name], rtol=1e-5, atol=1e-8) for name in grads)


@pytest.mark.parametrize("name", GATES)
def test_two_passes_before_one_backward_keep_their_own_decisions(training, bank, ids, name):
    gate = trained_like(GATES[name](bank.shape(WIDTH)))
    other = (ids + 11) % (VOCAB - 3) + 3
    with attached(training, bank, gate=gate, select=TopK(k=2)):
        (loss_of(training, ids) + loss_of(training, other)).backward()
        plain = grads_of(gate)
        gate.zero_grad()
        training.activation_checkpointing_enable()
        (loss_of(training, ids) + loss_of(training, other)).backward()
    assert all(torch.allclose(grads_of(gate)[name], plain[name], rtol=1e-5, atol=1e-8) for name in plain)


def test_every_second_layer_may_be_checkpointed(training, bank, ids):
    gate = trained_like(LinearGate(bank.shape(WIDTH), level="layer"))
    with attached(training, bank, gate=gate, select=Softmax()):
        loss_of(training, ids).backward()
        plain = grads_of(gate)
        gate.zero_grad()
        training.activation_checkpointing_enable(every_n_layers=2)
        loss_of(training, ids).backward()
    assert all(torch.allclose(grads_of(gate)[name], plain[name], rtol=1e-5, atol=1e-8) for name in plain)


def test_after_a_pass_the_model_checkpoints_as_it_did(training, bank, ids):
    training.activation_checkpointing_enable()
    before = [layer._gradient_checkpointing_func for layer in training.model.layers]
    with attached(training, bank, weights=[1.0] * 8):
        loss_of(training, ids)
        assert [layer._gradient_checkpointing_func for layer in training.model.layers] == before
        with pytest.raises(IndexError, match="out of range"):
            loss_of(training, ids + 1000)
    assert [layer._gradient_checkpointing_func for layer in training.model.layers] == before


def test_reentrant_checkpointing_is_refused(training, bank, ids):
    training.activation_checkpointing_enable({"use_reentrant": True})
    gate = LinearGate(bank.shape(WIDTH))
    with (
        attached(training, bank, gate=gate, select=Softmax()),
        pytest.raises(PmemxError, match="reentrant gradient checkpointing cannot be used with a bank"),
    ):
        loss_of(training, ids)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_an_expert_that_is_swapped_between_forward_and_backward_stops_the_backward(training, bank, ids, checkpointed):
    if checkpointed:
        training.activation_checkpointing_enable()
    gate = trained_like(LinearGate(bank.shape(WIDTH), granularity="token"))
    with attached(training, bank, gate=gate, select=Softmax()) as routed:
        loss = loss_of(training, ids)
        routed.swap("expert-5", block(training, 9))
        with pytest.raises((PmemxError, RuntimeError), match=r"the bank was written|modified by an inplace operation"):
            loss.backward()


def test_gradients_reach_the_gate_and_neither_the_base_nor_the_experts(training, bank, ids):
    gate = trained_like(LinearGate(bank.shape(WIDTH), granularity="token"))
    with attached(training, bank, gate=gate, select=Softmax()) as routed:
        loss_of(training, ids).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in gate.parameters())
    assert all(parameter.grad is None for parameter in training.parameters())
    assert all(tensor.grad is None and not tensor.requires_grad for tensor in routed.bank.buffers())


def test_rows_with_different_experts_train_as_they_would_alone(training, bank, ids):
    gate = trained_like(SequenceGate(bank.shape(WIDTH)))
    active = [["expert-1", "expert-4"], None, ["expert-7"], []]
    with attached(training, bank, gate=gate, select=Softmax()) as routed:
        with routed.given(active=active):
            together = training(input_ids=ids, use_cache=False).logits
        together.square().sum().backward()
        grads = grads_of(gate)
        gate.zero_grad()
        for row, names in enumerate(active):
            with routed.given(active=[names]):
                alone = training(input_ids=ids[row : row + 1], use_cache=False).logits
            assert (alone[0] - together[row]).abs().max() < 1e-5
            alone.square().sum().backward()
    for name, parameter in gate.named_parameters():
        assert torch.allclose(parameter.grad, grads[name], rtol=1e-4, atol=1e-5)
    assert (together[3] - logits(training, ids[3:])[0]).abs().max() < 1e-6


# Against plain algebra.


class NaiveLinear(nn.Module):
    """x W^T plus the dense delta of every expert, weighed by token."""

    def __init__(self, weight, deltas):
        super().__init__()
        self.weight, self.deltas = weight, deltas

    def forward(self, x, share):
        experts = torch.einsum("bti,eoi->bteo", x, self.deltas)
        return x @ self.weight.T + torch.einsum("bteo,bte->bto", experts, share)


def plan_of(kind, weight):
    if kind is SequenceMix:
        index = torch.tensor([[[1, 4, 6]], [[0, 2, 7]], [[5, 1, 3]]])
        return SequenceMix(Routing(index, weight[:, :1, :3], 8), "after"), index.expand(-1, 5, -1), weight[:, :1, :3]
    if kind is SegmentMix:
        index = torch.stack([torch.randperm(8)[:3] for _ in range(15)]).view(3, 5, 3)
        return SegmentMix(Routing(index, weight[..., :3], 8)), index, weight[..., :3]
    return DenseMix(Routing.of_weights(weight), "after"), torch.arange(8).expand(3, 5, 8), weight


@pytest.mark.parametrize("kind", [DenseMix, SequenceMix, SegmentMix])
@pytest.mark.parametrize("site", ["model.layers.0.mlp.down_proj", "model.layers.0.self_attn.q_proj"])
def test_gradients_of_a_site_are_those_of_the_dense_sum_of_deltas(llama, blocks, kind, site):
    torch.manual_seed(1)
    bank = ExpertBank(blocks, dtype=torch.float64)
    factors = dict(bank.items())[site]
    deltas = torch.stack(
        [
            expert.factors[site].delta().double()
            if site in expert.factors
            else torch.zeros(factors.width_out, factors.width_in, dtype=torch.float64)
            for expert in blocks
        ]
    )
    base = llama.get_submodule(site).weight.double()
    x = torch.randn(3, 5, factors.width_in, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(3, 5, 8, dtype=torch.float64, requires_grad=True)
    mix, index, chosen = plan_of(kind, weight)
    ours = mix.add(x @ base.T, x, factors)
    share = torch.zeros(3, 5, 8, dtype=torch.float64).scatter_add(2, index, chosen.expand(index.shape))
    naive = NaiveLinear(base, deltas)(x, share)
    # float32 factors times their scale are rounded in another order by the dense deltas.
    assert (ours - naive).abs().max() < 1e-5 and (naive - x @ base.T).abs().max() > 0.1
    back = torch.randn_like(ours)
    mine = torch.autograd.grad(ours, (x, weight), back)
    theirs = torch.autograd.grad(naive, (x, weight), back)
    for one, other in zip(mine, theirs, strict=True):
        assert other.abs().max() > 0.1 and (one - other).abs().max() < 1e-4


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("room", [(2, 3, 0, 2), (2, 2, 2, 2)], ids=["ragged", "even"])
def test_the_dense_product_passes_gradcheck_with_decisions_by_token_by_row_and_for_all(room):
    torch.manual_seed(0)
    A, B = random(sum(room), 5).detach(), random(sum(room), 4).detach()

    def product(x, weight):
        return DenseProduct.apply(x, weight.expand(2, -1, -1), A, B, Layout(0, room))

    for decisions in ((2, 3, 4), (2, 1, 4), (1, 1, 4)):
        assert torch.autograd.gradcheck(product, (random(2, 3, 5), random(*decisions)))


def test_the_gathered_product_passes_gradcheck_with_rows_that_share_experts():
    torch.manual_seed(0)
    A, B = random(7, 5).detach(), random(7, 4).detach()
    index = torch.tensor([[0, 1, 2], [2, 2, 6]])
    assert torch.autograd.gradcheck(GatheredProduct.apply, (random(2, 3, 5), random(2, 3), A, B, index))


def test_the_segmented_product_passes_gradcheck_with_ragged_and_empty_segments():
    torch.manual_seed(0)
    A, B = random(7, 5).detach(), random(7, 4).detach()
    token, sizes = torch.tensor([0, 3, 1, 3, 4]), (2, 0, 3)
    factors = ((A[:2], B[:2]), (A[2:2], B[2:2]), (A[2:], B[2:]))
    assert torch.autograd.gradcheck(SegmentedProduct.apply, (random(5, 5), random(5), token, sizes, factors))


@pytest.mark.parametrize("kind", [DenseMix, SequenceMix, SegmentMix])
@pytest.mark.parametrize("write", ["swap", "unload"])
def test_a_backward_pass_over_an_expert_that_was_written_since_is_refused(llama, blocks, kind, write):
    torch.manual_seed(1)
    bank = ExpertBank(blocks)
    site = dict(bank.items())["model.layers.0.mlp.up_proj"]
    x, weight = torch.randn(3, 5, site.width_in, requires_grad=True), torch.rand(3, 5, 8)
    out = plan_of(kind, weight)[0].add(torch.zeros(3, 5, site.width_out), x, site)
    if write == "swap":
        bank.swap("expert-1", blocks[1])
    else:
        bank.unload("expert-1")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_row_whose_expert_is_chosen_outright_trains_nothing_and_equals_its_pass_without_gradients(
    training, bank, ids
):
    gate = OracleGate(bank.shape(WIDTH))
    with attached(training, bank, gate=gate, select=TopK()) as routed, routed.given(domain=torch.tensor([3, 0, 8, 1])):
        recorded = training(input_ids=ids, use_cache=False).logits
        assert not recorded.requires_grad and torch.equal(recorded, logits(training, ids))
