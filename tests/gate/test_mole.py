"""MoLE's gate is the paper's on the stacked outputs of the experts, computed within their ranks."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.core.block import LoraFactors
from pmemx.gate.mole import MoleGate
from pmemx.runtime.attach import attached
from pmemx.select.softmax import Softmax
from tests.gate.dense import SITES, bank_of_eight, by_layer, factors_of, logits_by_dense, outputs, perturbed, trained

SITE = "model.layers.0.mlp.up_proj"


def gate_of(dtype: torch.dtype = torch.float32, **settings) -> MoleGate:
    gate = perturbed(MoleGate(bank_of_eight().shape(32), **settings)).to(dtype)
    for number in range(8):
        gate.read_expert(number, factors_of(number))
    return gate


def as_in_the_paper(site: str, x: Tensor, e: Tensor, temperature: float) -> Tensor:
    """Norm(dW_1 x, dW_2 x, ...) . e / tau; e is [experts * width_out, expert]."""
    return F.normalize(torch.cat(outputs(site, x), dim=-1), dim=-1) @ e / temperature


def test_scores_are_those_of_the_paper_for_the_outputs_of_the_probes():
    gate, x = gate_of(torch.float64, level="site"), torch.randn(3, 5, 32, dtype=torch.float64)
    number = list(SITES).index(SITE)
    e = torch.cat(outputs(SITE, gate.probes[number].detach()), dim=-1).T
    expected = as_in_the_paper(SITE, x, e, gate.log_temperatures[number].exp().item())
    assert torch.allclose(gate(SITE, x)[..., 1:], expected, rtol=1e-10, atol=1e-10)


def test_whatever_gate_vectors_the_paper_could_learn_some_probes_give_the_same_scores():
    """dW^T e = (sum_j dW_j^T dW_j) q has a solution, because both sides lie in the experts' row spaces."""
    gate, x = gate_of(torch.float64, level="site"), torch.randn(3, 5, 32, dtype=torch.float64)
    number = list(SITES).index(SITE)
    e = torch.randn(8 * 48, 8, dtype=torch.float64)
    stacked = torch.cat(outputs(SITE, torch.eye(32, dtype=torch.float64)), dim=-1).T
    gate.probes[number].data = (torch.linalg.pinv(stacked.T @ stacked, rtol=1e-9, hermitian=True) @ stacked.T @ e).T
    expected = as_in_the_paper(SITE, x, e, gate.log_temperatures[number].exp().item())
    assert torch.allclose(gate(SITE, x)[..., 1:], expected, rtol=1e-8, atol=1e-8)


def test_by_hand():
    """One axis an expert: x = (3, 4) puts out 3 and 2 * 4, of norm sqrt(73); probes (1, 0) and (0, 1), tau = 2."""
    gate = MoleGate(BankShape(("a", "b"), {"up": 2}, 2))
    gate.read_expert(0, {"up": LoraFactors(torch.eye(2)[:1], torch.eye(5)[:, :1], 1.0)})
    gate.read_expert(1, {"up": LoraFactors(torch.eye(2)[1:], -torch.eye(5)[:, 1:2], 2.0)})
    gate.probes[0].data, gate.log_temperatures.data = torch.eye(2), torch.tensor([2.0]).log()
    expected = torch.tensor([3 * 1, 8 * 2]) / 73**0.5 / 2
    assert torch.allclose(gate("up", torch.tensor([[[3.0, 4.0]]]))[0, 0, 1:], expected)


def test_all_experts_weigh_the_same_before_training():
    bank = bank_of_eight()
    gate = MoleGate(bank.shape(32))
    for number, name in enumerate(bank.names):
        gate.read_expert(number, bank.factors(name))
    assert gate(SITE, torch.randn(2, 3, 32))[..., 1:].eq(0).all()


def test_a_swapped_expert_is_read_again_whatever_its_rank():
    gate, x = gate_of(), torch.randn(2, 3, 32)
    before = gate(SITE, x)
    gate.read_expert(0, factors_of(3))
    assert not torch.allclose(gate(SITE, x), before, atol=1e-3)
    gate.read_expert(0, factors_of(0))
    assert torch.allclose(gate(SITE, x), before, atol=1e-5)


def test_nothing_of_an_output_s_width_is_kept():
    sizes = {name: tuple(value.shape) for name, value in gate_of().named_buffers()}
    assert sizes == {f"outputs_{i}": (8, 4, width_in) for i, (width_in, _) in enumerate(SITES.values())}


def test_gradients_pass_gradcheck():
    gate = gate_of(torch.float64, level="site")
    number, x = list(SITES).index(SITE), torch.randn(1, 2, 32, dtype=torch.float64)
    names = (f"probes.{number}", "log_temperatures")
    values = tuple(dict(gate.named_parameters())[name].detach().requires_grad_() for name in names)

    def scores(*given: Tensor) -> Tensor:
        return torch.func.functional_call(gate, dict(zip(names, given, strict=True)), (SITE, x))[..., 1:]

    assert torch.autograd.gradcheck(scores, values)


def test_logits_are_those_of_the_formula_with_dense_updates(llama, ids):
    gate = gate_of()
    decides = {"0": (0, "model.layers.0.self_attn.q_proj"), "1": (2, "model.layers.1.self_attn.q_proj")}

    def weigh(site, x):
        number, first = decides[site.split(".")[2]]
        assert site == first
        e = torch.cat(outputs(site, gate.probes[number].detach()), dim=-1).T
        scores = as_in_the_paper(site, x, e, gate.log_temperatures[number].exp().item())
        return scores.mean(dim=1, keepdim=True).softmax(dim=-1)

    expected = logits_by_dense(llama, ids, by_layer(weigh))
    with torch.no_grad(), attached(llama, bank_of_eight(), gate=gate, select=Softmax()):
        assert (llama(input_ids=ids).logits - expected).abs().max() < 5e-6


def test_training_raises_the_weight_of_the_right_expert(llama, ids):
    before, after = trained(llama, ids, MoleGate(bank_of_eight().shape(32)), Softmax(), right=3, lr=0.1)
    assert after.argmax() == 3 and after[3] > before[3] + 0.3
