"""A linear gate keeps a matrix a site, or a matrix a layer; before training the base answers."""

import torch

from pmemx.core.bank import BankShape
from pmemx.gate.linear import LinearGate

SHAPE = BankShape(
    ("law", "botany"),
    {
        "model.layers.0.self_attn.q_proj": 8,
        "model.layers.0.self_attn.v_proj": 8,
        "model.layers.0.mlp.down_proj": 12,
        "model.layers.1.mlp.down_proj": 12,
    },
    8,
)


def test_by_hand():
    gate = LinearGate(SHAPE, abstain_bias=2.0)
    gate.scores["0"].weight.data[1, 0] = 1.5
    x = torch.zeros(1, 1, 8)
    x[0, 0, 0] = -7  # at unit RMS: -sqrt(8)
    scores = gate("model.layers.0.self_attn.q_proj", x)
    assert torch.allclose(scores, torch.tensor([[[2.0, -1.5 * 8**0.5, 0.0]]]), atol=1e-5)
    assert torch.equal(gate("model.layers.0.self_attn.v_proj", x), torch.tensor([[[2.0, 0.0, 0.0]]]))


def test_the_sites_of_a_layer_share_a_matrix_where_they_read_the_same_width():
    x = torch.randn(2, 3, 8)
    gate = LinearGate(SHAPE, level="layer")
    for weight in gate.parameters():
        weight.data.normal_()
    first, second, down, other = SHAPE.sites
    assert torch.equal(gate(first, x), gate(second, x))
    wide = torch.randn(2, 3, 12)
    assert not torch.equal(gate(down, wide), gate(other, wide))
    assert [layer.in_features for layer in gate.scores.values()] == [8, 12, 12]
    assert [layer.in_features for layer in LinearGate(SHAPE).scores.values()] == [8, 8, 12, 12]


def test_before_training_the_base_answers():
    assert LinearGate(SHAPE)("model.layers.1.mlp.down_proj", torch.randn(2, 5, 12)).argmax(dim=-1).eq(0).all()
