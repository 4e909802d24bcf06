"""WE-MoE starts at task arithmetic's constant and sharpens predictions without labels."""

import pytest
import torch
from torch import Tensor

from pmemx.core.bank import BankShape
from pmemx.core.errors import ConfigError
from pmemx.gate.we_moe import WeMoeGate
from pmemx.runtime.attach import attached
from pmemx.select.raw import Raw
from tests.gate.dense import bank_of_eight, by_layer, logits_by_dense, perturbed, trained

SITE = "model.layers.0.mlp.up_proj"


def test_weights_start_near_the_constant():
    torch.manual_seed(0)
    gate = WeMoeGate(bank_of_eight().shape(32), start=0.25)
    weights = Raw()(gate(SITE, torch.randn(4, 7, 32))).dense()
    assert (weights - 0.25).abs().max() < 0.01


def test_by_hand():
    """relu(2 * 3 - 1) = 5 and relu(-3) = 0, so -0.1 * 5 + 0.3."""
    gate = WeMoeGate(BankShape(("a",), {"up": 2}, 2))
    inner, _, outer = gate.networks[0]
    inner.weight.data, inner.bias.data = torch.tensor([[2.0, 0.0], [-1.0, 0.0]]), torch.tensor([-1.0, 0.0])
    outer.weight.data = torch.tensor([[-0.1, 7.0]])
    assert torch.allclose(Raw()(gate("up", torch.tensor([[[3.0, 9.0]]]))).dense(), torch.tensor(-0.2))


def test_weights_of_all_sites_are_not_added_up():
    with pytest.raises(ConfigError, match=r"gate\.level 'model'"):
        WeMoeGate(bank_of_eight().shape(32), level="model")


def test_logits_are_those_of_the_formula_with_dense_updates(llama, ids):
    bank = bank_of_eight()
    gate = perturbed(WeMoeGate(bank.shape(32)), 0.1)

    def weigh(site: str, x: Tensor) -> Tensor:
        inner, _, outer = gate.networks[2 * int(site.split(".")[2])]
        said = (x @ inner.weight.T + inner.bias).clamp_min(0) @ outer.weight.T + outer.bias
        return said.mean(dim=1, keepdim=True).detach()

    expected = logits_by_dense(llama, ids, by_layer(weigh))
    with torch.no_grad(), attached(llama, bank, gate=gate, select=Raw()):
        assert (llama(input_ids=ids).logits - expected).abs().max() < 5e-6


def entropy(logits: Tensor) -> Tensor:
    return -(logits.softmax(dim=-1) * logits.log_softmax(dim=-1)).sum(dim=-1).mean()


def test_the_entropy_of_predictions_alone_raises_the_weight_of_the_expert_that_is_sure():
    """A head of one site, y = (W + sum_e w_e dW_e) x: expert 2 doubles W where it acts, the others undo it."""
    torch.manual_seed(0)
    x, head = torch.randn(6, 5, 16), torch.randn(24, 16)
    U, S, Vh = torch.linalg.svd(head, full_matrices=False)
    updates = torch.stack([(1 if e == 2 else -0.3) * (U[:, :4] * S[:4]) @ Vh[:4] for e in range(8)])
    gate = WeMoeGate(BankShape(tuple(f"e{e}" for e in range(8)), {"head": 16}, 16))
    optimizer, seen = torch.optim.Adam(gate.parameters(), lr=0.01), []
    for _ in range(31):
        pooled = gate.pool.on_prompt(gate("head", x), torch.ones(6, 5, dtype=torch.bool))
        weight = Raw()(gate.score("head", pooled)).dense()
        merged = head + torch.einsum("bte,eoi->boi", weight, updates)
        loss = entropy(x @ merged.mT)
        seen.append((loss.item(), weight.detach().mean(dim=(0, 1))))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    (first, before), (last, after) = seen[0], seen[-1]
    assert last < first - 0.1
    assert after[2] > before[2] + 0.2
    assert (after < before)[[0, 1, 3, 4, 5, 6, 7]].all()


def test_training_on_answers_raises_the_weight_of_the_right_expert(llama, ids):
    torch.manual_seed(0)
    before, after = trained(llama, ids, WeMoeGate(bank_of_eight().shape(32)), Raw(), right=3, lr=0.02)
    assert after.argmax() == 3 and after[3] > before[3] + 0.3
