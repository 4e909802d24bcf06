"""RouterLoRA attends to the experts' outputs, knows no expert, and so serves banks that grow."""

import pytest
import torch
from torch import Tensor

from pmemx.core.bank import BankShape, ExpertBank
from pmemx.core.block import LoraFactors
from pmemx.core.errors import ConfigError, IncompatibleBlock
from pmemx.core.grown import grown
from pmemx.gate.router_lora import RouterLoraGate
from pmemx.runtime.attach import attached
from pmemx.select.softmax import Softmax
from tests.gate.dense import SITES, bank_of_eight, block, factors_of, logits_by_dense, outputs, perturbed, trained

SITE = "model.layers.0.mlp.up_proj"


def read(gate: RouterLoraGate, bank: ExpertBank) -> RouterLoraGate:
    for number, name in enumerate(bank.names):
        gate.read_expert(number, bank.factors(name))
    return gate


def gate_of(bank: ExpertBank | None = None, **settings) -> RouterLoraGate:
    bank = bank_of_eight() if bank is None else bank
    torch.manual_seed(0)
    return read(perturbed(RouterLoraGate(bank.shape(32), **settings)), bank)


def as_in_the_paper(gate: RouterLoraGate, site: str, x: Tensor) -> Tensor:
    """(A_r x) . (B_r dW_e x) / sqrt(rank), output by output."""
    number, width_out = list(SITES).index(site), SITES[site][1]
    query, keys = x @ gate.queries[number].T, gate.keys[number][:, :width_out]
    met = [(query * (out @ keys.T)).sum(dim=-1) for out in outputs(site, x)]
    return (torch.stack(met, dim=-1) / gate.rank**0.5).detach()


@pytest.mark.parametrize("site", SITES)
def test_scores_are_those_of_the_paper(site):
    gate, x = gate_of(normalise=False), torch.randn(3, 5, SITES[site][0])
    scores = gate(site, x)
    assert torch.allclose(scores[..., 1:], as_in_the_paper(gate, site, x), rtol=1e-4, atol=1e-4)
    skipped = [number for number in range(8) if site not in factors_of(number)]
    assert scores[..., [1 + number for number in skipped]].eq(0).all()


def test_normalised_scores_are_divided_by_the_norm_of_the_update():
    gate, x = gate_of(), torch.randn(3, 5, 32)
    norms = torch.tensor([factors_of(n)[SITE].delta().norm() if SITE in factors_of(n) else 1.0 for n in range(8)])
    assert torch.allclose(gate(SITE, x)[..., 1:], as_in_the_paper(gate, SITE, x) / norms, rtol=1e-4, atol=1e-5)


def test_by_hand():
    """q = 2 * 3, k = 5 * (4 * 3) of an expert that reads the first number and puts 4 times it out as the second."""
    gate = RouterLoraGate(BankShape(("a", "b"), {"up": 2}, 2), rank=1, normalise=False)
    gate.read_expert(0, {"up": LoraFactors(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0], [2.0]]), 2.0)})
    gate.queries[0].data, gate.keys[0].data = torch.tensor([[2.0, 0.0]]), torch.tensor([[9.0, 5.0]])
    assert gate("up", torch.tensor([[[3.0, 8.0]]]))[0, 0, 1:].tolist() == [360.0, 0.0]


def test_all_experts_weigh_the_same_before_training():
    gate = read(RouterLoraGate(bank_of_eight().shape(32)), bank_of_eight())
    assert gate(SITE, torch.randn(2, 3, 32))[..., 1:].eq(0).all()


def test_an_expert_that_joins_after_training_leaves_the_scores_of_the_others_as_they_were():
    """Bit for bit, and scores what a gate that had known it would have said."""
    few, all_of_them = ExpertBank([block(number) for number in range(6)]), bank_of_eight()
    gate, x = gate_of(few), {site: torch.randn(3, 5, width) for site, (width, _) in SITES.items()}
    more = read(grown(gate, RouterLoraGate(all_of_them.shape(32))), all_of_them)
    for site in SITES:
        before, after = gate(site, x[site]), more(site, x[site])
        assert torch.equal(after[..., :7], before)
        norms = torch.tensor([factors_of(n)[site].delta().norm() if site in factors_of(n) else 1.0 for n in range(8)])
        expected = as_in_the_paper(gate, site, x[site]) / norms
        assert torch.allclose(after[..., 7:], expected[..., 6:], rtol=1e-4, atol=1e-5)
    assert {name: value.shape for name, value in gate.state_dict().items()} == {
        name: value.shape for name, value in more.state_dict().items()
    }


def test_an_expert_of_a_higher_rank_moves_the_scores_of_the_others_by_rounding_alone():
    few, more = ExpertBank([block(n) for n in (0, 1, 2)]), ExpertBank([block(n) for n in (0, 1, 2, 3)])
    gate, x = gate_of(few), torch.randn(3, 5, 32)
    after = read(grown(gate, RouterLoraGate(more.shape(32))), more)(SITE, x)
    assert torch.allclose(after[..., :4], gate(SITE, x), rtol=1e-5, atol=1e-6)


def test_a_site_that_puts_out_more_than_there_are_keys_for_is_refused():
    bank = ExpertBank([block(0)])
    gate = RouterLoraGate(bank.shape(32), width_out=40)
    with pytest.raises(IncompatibleBlock, match=r"up_proj' puts out 48 numbers.*gate\.width_out=48"):
        gate.read_expert(0, bank.factors("e0"))
    with pytest.raises(ConfigError, match=r"gate\.rank = 0"):
        RouterLoraGate(bank.shape(32), rank=0)


def test_gradients_pass_gradcheck():
    gate = gate_of(rank=2).double()
    number, x = list(SITES).index(SITE), torch.randn(1, 2, 32, dtype=torch.float64)
    names = (f"queries.{number}", f"keys.{number}")
    values = tuple(dict(gate.named_parameters())[name].detach().requires_grad_() for name in names)

    def scores(*given: Tensor) -> Tensor:
        return torch.func.functional_call(gate, dict(zip(names, given, strict=True)), (SITE, x))[..., 1:]

    assert torch.autograd.gradcheck(scores, values)


def test_logits_are_those_of_the_formula_with_dense_updates(llama, ids):
    gate = gate_of(normalise=False)
    expected = logits_by_dense(llama, ids, lambda site, x: as_in_the_paper(gate, site, x).softmax(dim=-1))
    with torch.no_grad(), attached(llama, bank_of_eight(), gate=gate, select=Softmax()):
        assert (llama(input_ids=ids).logits - expected).abs().max() < 1e-5


def test_training_raises_the_weight_of_the_right_expert(llama, ids):
    torch.manual_seed(0)
    gate = RouterLoraGate(bank_of_eight().shape(32))
    before, after = trained(llama, ids, gate, Softmax(), right=3, lr=0.1)
    assert after.argmax() == 3 and after[3] > before[3] + 0.2
