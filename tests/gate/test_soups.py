"""CAT learns one weight an expert and site, and is then a dense merge."""

import torch

from pmemx.gate.soups import SoupsGate
from pmemx.runtime.attach import attached
from pmemx.select.softmax import Softmax
from tests.gate.conftest import copied
from tests.gate.dense import SITES, bank_of_eight, factors_of, perturbed, trained


def test_the_experts_are_averaged_before_training(llama, ids):
    bank = bank_of_eight()
    with torch.no_grad(), attached(llama, bank, weights=[1 / 8] * 8):
        expected = llama(input_ids=ids).logits
    with torch.no_grad(), attached(llama, bank, gate=SoupsGate(bank.shape(32)), select=Softmax()):
        assert (llama(input_ids=ids).logits - expected).abs().max() < 2e-6


def test_is_a_dense_merge_with_the_weights_of_each_site(llama, ids):
    bank = bank_of_eight()
    gate = perturbed(SoupsGate(bank.shape(32)), 1.0)
    merged = copied(llama)
    for site, theta in zip(bank.site_names, gate.theta.detach(), strict=True):
        weight = merged.get_submodule(site).weight.data
        for number, alpha in enumerate(theta.exp() / theta.exp().sum()):
            if site in factors_of(number):
                weight += alpha * factors_of(number)[site].delta()
    with torch.no_grad(), attached(llama, bank, gate=gate, select=Softmax()):
        assert (llama(input_ids=ids).logits - merged(input_ids=ids).logits).abs().max() < 5e-6


def test_says_the_same_whatever_is_read_and_looks_at_nothing(llama, ids):
    bank, passes = bank_of_eight(), []
    gate = perturbed(SoupsGate(bank.shape(32)), 1.0)
    handle = llama.model.layers[0].register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad(), attached(llama, bank, gate=gate, select=Softmax()) as routed:
        scores = routed.decide(ids, torch.ones_like(ids))
        assert not passes
        llama(input_ids=ids)
        assert len(passes) == 1
    handle.remove()
    assert scores.shape == (4, 1, 8, 9)
    assert torch.equal(scores[..., 1:], gate.theta.expand(4, 1, -1, -1))


def test_every_site_learns_its_own_weights_and_an_absent_expert_only_lends_its_share():
    """Where the experts 2 and 5 skip a site, their gradient is what their share takes from the others."""
    gate = SoupsGate(bank_of_eight().shape(32))
    site = list(SITES).index("model.layers.0.mlp.up_proj")
    shares = gate.score(torch.zeros(1, 1, 0), None)[0, 0, site].softmax(dim=-1)[1:]
    (shares * torch.tensor([1.0, 1, 0, 1, 1, 0, 1, 1])).sum().backward()
    expected = torch.zeros(8, 8)
    expected[site] = (torch.tensor([1.0, 1, 0, 1, 1, 0, 1, 1]) - 0.75) / 8
    assert torch.allclose(gate.theta.grad, expected, atol=1e-7)


def test_training_raises_the_weight_of_the_right_expert(llama, ids):
    gate = SoupsGate(bank_of_eight().shape(32))
    before, after = trained(llama, ids, gate, Softmax(), right=3, lr=0.1)
    assert after.argmax() == 3 and after[3] > before[3] + 0.3
