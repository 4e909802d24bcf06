"""LoraHub's numbers are the weights of the experts, for any text; they begin at the base model, and a bank may grow."""

import torch

from pmemx.core.bank import BankShape
from pmemx.core.grown import grown
from pmemx.gate.lora_hub import LoraHubGate
from pmemx.runtime.attach import attached
from pmemx.select.raw import Raw
from tests.rounding import rounding

WEIGHTS = torch.tensor([0.5, -1.5, 0.0, 0.25, 1.0, 0.0, -0.75, 1.5])


def test_begins_with_the_base_model_bit_for_bit(llama, bank, ids):
    base = llama(input_ids=ids).logits
    with attached(llama, bank, gate=LoraHubGate(bank.shape(32)), select=Raw(), mixing="before") as routed:
        assert torch.equal(routed.model(input_ids=ids).logits, base)


def test_is_one_expert_of_weighted_factors(llama, bank, ids):
    """sum w B and sum w A, the weights of both negative ones too; by hand at one site, and as fixed weights everywhere."""
    gate = LoraHubGate(bank.shape(32))
    gate.numbers().copy_(WEIGHTS)
    factors = {name: bank.factors(name)["model.layers.0.mlp.up_proj"] for name in bank.names}
    A = sum(w * f.A for w, f in zip(WEIGHTS, factors.values(), strict=True))
    B = sum(w * f.B * f.scale for w, f in zip(WEIGHTS, factors.values(), strict=True))
    site, seen = llama.get_submodule("model.layers.0.mlp.up_proj"), []
    with torch.no_grad(), attached(llama, bank, gate=gate, select=Raw(), mixing="before") as routed:
        handle = site.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
        ours = routed.model(input_ids=ids).logits
        handle.remove()
        (x, out), *_ = seen
        allowed = rounding(
            (x.abs() @ site.weight.T.abs() + x.abs() @ A.T.abs() @ B.T.abs()).max(), sum(A.shape) + len(WEIGHTS)
        )
        assert (out - (x @ site.weight.T + x @ A.T @ B.T)).abs().max() <= allowed
    with torch.no_grad(), attached(llama, bank, weights=WEIGHTS, mixing="before") as routed:
        assert (routed.model(input_ids=ids).logits - ours).abs().max() < 1e-5


def test_weighs_every_text_alike_with_or_without_a_known_domain():
    gate = LoraHubGate(BankShape(tuple("abcdefgh"), {"layers.0.up_proj": 4}, 4))
    gate.numbers().copy_(WEIGHTS)
    for domain in (None, torch.tensor([3, -1])):
        scores = gate.score(torch.zeros(2, 3, 0), domain)
        assert torch.equal(scores[..., 1:], WEIGHTS.expand(2, 3, 8)) and scores[..., 0].eq(0).all()


def test_has_nothing_that_a_gradient_could_train():
    assert list(LoraHubGate(BankShape(("a",), {"layers.0.up_proj": 4}, 4)).parameters()) == []


def test_a_new_expert_begins_at_zero_and_the_others_keep_their_weights():
    sites = {"layers.0.up_proj": 4}
    gate = LoraHubGate(BankShape(("law", "sums"), sites, 4))
    gate.numbers().copy_(torch.tensor([0.5, -1.0]))
    larger = grown(gate, LoraHubGate(BankShape(("sums", "botany", "law"), sites, 4)))
    assert isinstance(larger, LoraHubGate) and larger.numbers().tolist() == [-1.0, 0.0, 0.5]
