"""LoRA-Flow gives raw weights, softmax(W h) + b, one set a layer."""

import pytest
import torch
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.core.errors import ConfigError
from pmemx.gate.lora_flow import LoraFlowGate
from pmemx.runtime.attach import attached
from pmemx.select.raw import Raw
from tests.gate.dense import bank_of_eight, by_layer, logits_by_dense, perturbed, trained

SHAPE = BankShape(("law", "botany"), {"model.layers.0.mlp.up_proj": 2, "model.layers.0.mlp.down_proj": 3}, 2)


def test_by_hand():
    gate = LoraFlowGate(SHAPE)
    gate.matrices[0].data = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    gate.biases[0].data = torch.tensor([-0.5, 1.5])
    scores = gate("model.layers.0.mlp.up_proj", torch.tensor([[[3**0.5, 9.0]]]).log())
    # softmax(log(3) / 2, 0) = sqrt(3) / (1 + sqrt(3)) and the rest
    share = 3**0.5 / (1 + 3**0.5)
    assert torch.allclose(Raw()(scores).dense(), torch.tensor([[[share - 0.5, 2.5 - share]]]))


def test_experts_are_averaged_before_training_whatever_is_read():
    gate = LoraFlowGate(bank_of_eight().shape(32))
    weights = Raw()(gate("model.layers.1.mlp.down_proj", torch.randn(2, 5, 48))).dense()
    assert torch.equal(weights, torch.full((2, 5, 8), 1 / 8))


def test_the_sites_of_a_layer_share_weights_where_they_read_the_same_width():
    gate = perturbed(LoraFlowGate(bank_of_eight().shape(32)))
    assert [tuple(matrix.shape) for matrix in gate.matrices] == [(8, 32), (8, 48)] * 2
    x = torch.randn(2, 3, 32)
    at = {site: gate(f"model.layers.{site}", x) for site in ("0.self_attn.q_proj", "0.mlp.up_proj", "1.mlp.up_proj")}
    assert torch.equal(at["0.self_attn.q_proj"], at["0.mlp.up_proj"])
    assert not torch.equal(at["0.mlp.up_proj"], at["1.mlp.up_proj"])


def test_weights_of_all_sites_are_not_added_up():
    with pytest.raises(ConfigError, match=r"gate\.level 'model'"):
        LoraFlowGate(bank_of_eight().shape(32), level="model")


def test_logits_are_those_of_the_formula_with_dense_updates(llama, ids):
    bank = bank_of_eight()
    gate = perturbed(LoraFlowGate(bank.shape(32)))
    of_layer = dict(zip("01", zip(gate.matrices[::2], gate.biases[::2], strict=True), strict=True))

    def weigh(site, x):
        matrix, bias = of_layer[site.split(".")[2]]
        return F.softmax(x @ matrix.T, dim=-1) + bias

    expected = logits_by_dense(llama, ids, by_layer(weigh))
    with torch.no_grad(), attached(llama, bank, gate=gate, select=Raw()):
        assert (llama(input_ids=ids).logits - expected).abs().max() < 2e-6


@pytest.mark.parametrize("right", [0, 3])
def test_training_raises_the_weight_of_the_right_expert(llama, ids, right):
    before, after = trained(llama, ids, LoraFlowGate(bank_of_eight().shape(32)), Raw(), right=right, lr=0.02)
    assert after.argmax() == right and after[right] > before[right] + 0.3
