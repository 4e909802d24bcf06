"""SMEAR reads the mean of a prompt, and mixes the parameters of the experts before it applies them."""

import pytest
import torch
from torch import Tensor

from pmemx.core.bank import ExpertBank
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.gate.smear import SmearGate
from pmemx.runtime.attach import attached
from pmemx.select.softmax import Softmax
from tests.gate.dense import SITES, bank_of_eight, by_layer, factors_of, logits_by_dense, perturbed, trained

SITE = "model.layers.0.mlp.up_proj"


def gate_of(**settings) -> SmearGate:
    torch.manual_seed(0)
    return perturbed(SmearGate(bank_of_eight().shape(32), **settings), 0.2)


def standard(v: Tensor) -> Tensor:
    return (v - v.mean(dim=-1, keepdim=True)) / (v.var(dim=-1, keepdim=True, correction=0) + 1e-5).sqrt()


def as_in_the_paper(gate: SmearGate, number: int, x: Tensor) -> Tensor:
    """softmax(LN(mean_t x) LN(R)^T) for x [batch, token, width]."""
    norm = gate.norms[number]
    h = standard(x.mean(dim=1, keepdim=True)) * norm.weight + norm.bias
    return (h @ (standard(gate.rows[number]) * gate.scales[number]).T).softmax(dim=-1).detach()


def test_tokens_are_averaged_before_they_are_scored():
    gate, x = gate_of(), torch.randn(3, 5, 32)
    prompt = torch.ones(3, 5, dtype=torch.bool)
    shares = gate.score(SITE, gate.pool.on_prompt(gate(SITE, x), prompt)).softmax(dim=-1)
    assert shares[..., 0].eq(0).all()
    assert torch.allclose(shares[..., 1:], as_in_the_paper(gate, 0, x), atol=1e-6)


def test_the_size_of_what_is_read_and_of_a_row_does_not_count():
    gate, pooled = gate_of(), torch.randn(3, 1, 32)
    before = gate.score(SITE, pooled)
    gate.rows[0].data[3] *= 20
    assert torch.allclose(gate.score(SITE, 7 * pooled), before, atol=1e-3)


def test_the_first_weights_are_nearly_equal():
    torch.manual_seed(0)
    shares = SmearGate(bank_of_eight().shape(32)).score(SITE, torch.randn(50, 1, 32)).softmax(dim=-1)[..., 1:]
    assert (shares - 1 / 8).abs().max() < 0.03


def test_a_scale_that_is_not_positive_is_refused():
    with pytest.raises(ConfigError, match=r"gate\.init_scale = 0"):
        SmearGate(bank_of_eight().shape(32), init_scale=0.0)


def test_logits_are_those_of_dense_updates_mixed_before(llama, ids):
    gate = gate_of()
    weigh = by_layer(lambda site, x: as_in_the_paper(gate, 2 * int(site.split(".")[2]), x))
    expected = logits_by_dense(llama, ids, weigh, "before")
    with torch.no_grad(), attached(llama, bank_of_eight(), gate=gate, select=Softmax(), mixing="before"):
        assert (llama(input_ids=ids).logits - expected).abs().max() < 5e-6


def test_every_prompt_has_one_merged_adapter_of_its_own(llama, ids):
    """Its factors are the weighted sums of the experts' factors, each layer with the weights that it decided."""
    weights: dict[str, Tensor] = {}
    with (
        torch.no_grad(),
        attached(llama, bank_of_eight(), gate=gate_of(), select=Softmax(), mixing="before") as routed,
        routed.observed(lambda seen: weights.update({seen.site: seen.routing.dense()})),
    ):
        logits = llama(input_ids=ids).logits
    for row in range(len(ids)):
        merged = {}
        for site, (width_in, width_out) in SITES.items():
            A, B = torch.zeros(4, width_in), torch.zeros(width_out, 4)
            for number, weight in enumerate(weights[site][row, 0]):
                if (factors := factors_of(number).get(site)) is not None:
                    A[: factors.rank] += weight * factors.A
                    B[:, : factors.rank] += weight * factors.scale * factors.B
            merged[site] = LoraFactors(A, B, 1.0)
        alone = ExpertBank([CapabilityBlock(BlockCard(name="merged", domain="test", base=""), merged)])
        with torch.no_grad(), attached(llama, alone, weights=[1.0]):
            assert (llama(input_ids=ids[row : row + 1]).logits - logits[row]).abs().max() < 5e-6


def test_gradients_of_scores_pass_gradcheck():
    gate, pooled = gate_of().double(), torch.randn(2, 1, 32, dtype=torch.float64)
    names = ("norms.0.weight", "norms.0.bias", "rows.0", "scales.0")
    values = tuple(dict(gate.named_parameters())[name].detach().requires_grad_() for name in names)

    class Scoring(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = gate

        def forward(self) -> Tensor:
            return self.gate.score(SITE, pooled)[..., 1:]

    def scores(*given: Tensor) -> Tensor:
        return torch.func.functional_call(
            Scoring(), {f"gate.{name}": value for name, value in zip(names, given, strict=True)}, ()
        )

    assert torch.autograd.gradcheck(scores, values, fast_mode=True)


def test_training_raises_the_weight_of_the_right_expert(llama, ids):
    torch.manual_seed(0)
    gate = SmearGate(bank_of_eight().shape(32))
    before, after = trained(llama, ids, gate, Softmax(), right=3, lr=0.03, mixing="before")
    assert after.argmax() == 3 and after[3] > before[3] + 0.3
