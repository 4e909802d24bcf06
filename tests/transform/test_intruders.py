"""Intruder reduction against the paper's formula, against PEFT on a whole model, and by hand."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from peft import PeftModel
from peft.tuners.lora.intruders import reduce_intruder_dimension
from torch import nn

from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.digest import fingerprint
from pmemx.core.errors import ConfigError, IncompatibleBlock
from pmemx.core.peft_folder import write_peft_folder
from pmemx.transform.intruders import IntruderReduction
from tests.runtime.tiny_models import block as tiny_block
from tests.runtime.tiny_models import tiny_llama


def naive(W: np.ndarray, dW: np.ndarray, rank: int, top_k: int, epsilon: float, keep: float) -> tuple[np.ndarray, int]:
    """The paper's formula: the update of that rank nearest to dW + (keep - 1) sum of intruders, and their number."""
    U_base, _, _ = scipy.linalg.svd(W, full_matrices=False)
    U, S, Vh = scipy.linalg.svd(W + dW, full_matrices=False)
    intruders = [i for i in range(min(top_k, len(S))) if np.abs(U_base.T @ U[:, i]).max() < epsilon]
    total = dW + (keep - 1) * sum((S[i] * np.outer(U[:, i], Vh[i]) for i in intruders), np.zeros_like(dW))
    left, values, right = scipy.linalg.svd(total, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank], len(intruders)


@pytest.mark.parametrize(
    "settings", [{}, {"top_k": 3}, {"epsilon": 0.8, "mitigation_lambda": 0.0}, {"mitigation_lambda": 1.0}]
)
def test_it_is_the_papers_formula(settings):
    model = tiny_llama()
    reduction = IntruderReduction(**settings)
    given = [tiny_block(model, number) for number in range(8)]
    seen = 0
    for before, after in zip(given, reduction(given, model), strict=True):
        for site, update in before.factors.items():
            W, dW = (tensor.double().numpy() for tensor in (model.get_submodule(site).weight, update.delta()))
            expected, intruders = naive(
                W, dW, update.rank, reduction.top_k, reduction.epsilon, reduction.mitigation_lambda
            )
            seen += intruders
            error = np.abs(after.factors[site].delta().numpy() - expected).max()
            assert error < 2e-5 * np.abs(dW).max(), (before.card.name, site)
            if not intruders:
                assert torch.equal(after.factors[site].A, update.A) and torch.equal(after.factors[site].B, update.B)
    assert seen > 8


def test_it_is_pefts_function_on_a_whole_copy_of_the_model(tmp_path):
    model = tiny_llama()
    block = tiny_block(model, 7)
    (found,) = IntruderReduction()([block], model)
    peft = PeftModel.from_pretrained(copy.deepcopy(model), write_peft_folder(block, tmp_path), adapter_name="old")
    reduce_intruder_dimension(peft, old_adapter_name="old", logging_sink=None)
    changed = 0
    for site, update in found.factors.items():
        layer = peft.get_base_model().get_submodule(site)
        delta = layer.get_delta_weight("intruder_reduced").detach()
        assert (update.delta() - delta).abs().max() < 1e-5 * delta.abs().max()
        changed += not torch.equal(update.A, block.factors[site].A)
    assert changed > 2


def test_by_hand():
    model = nn.Sequential(nn.Linear(2, 3, bias=False))
    model[0].weight.data = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    factors = {"0": LoraFactors(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0], [0.0], [5.0]]), 2.0)}
    (found,) = IntruderReduction()([CapabilityBlock(BlockCard("e", "d", ""), factors)], model)
    # W + dW has columns (2, 0, 0) and (0, 1, 10). The second is the intruder: |cos| to the base is at most 1 / sqrt(101).
    # A quarter of it goes: (0, 0, 10) - (0, 1, 10) / 4.
    assert torch.allclose(found.factors["0"].delta(), torch.tensor([[0, 0], [0, -0.25], [0, 7.5]]), atol=1e-5)
    assert found.factors["0"].scale == 2.0 and found.factors["0"].rank == 1
    assert found.card.metrics["relative_change"] == pytest.approx((0.25**2 + 2.5**2) ** 0.5 / 10, rel=1e-5)


def test_an_update_along_known_directions_has_no_intruder_and_stays_bit_for_bit():
    model = tiny_llama()
    site = "model.layers.0.mlp.up_proj"
    U, _, Vh = torch.linalg.svd(model.get_submodule(site).weight, full_matrices=False)
    known = {site: LoraFactors(Vh[:3], 4 * U[:, :3], 1.5)}
    (found,) = IntruderReduction()([CapabilityBlock(BlockCard("e", "d", ""), known)], model)
    assert torch.equal(found.factors[site].A, known[site].A) and torch.equal(found.factors[site].B, known[site].B)
    assert found.card.metrics["relative_change"] == 0.0


def test_experts_are_reduced_each_by_itself():
    model = tiny_llama()
    given = [tiny_block(model, number) for number in (1, 2)]
    both = IntruderReduction()(given, model)
    for block, found in zip(given, both, strict=True):
        (alone,) = IntruderReduction()([block], model)
        assert all(torch.equal(alone.factors[site].B, update.B) for site, update in found.factors.items())


def test_a_model_of_half_precision_is_computed_with_in_float32():
    model = tiny_llama().bfloat16()
    wide = copy.deepcopy(model).float()
    block = tiny_block(wide, 7)
    (one,), (other,) = IntruderReduction()([block], model), IntruderReduction()([block], wide)
    for site, update in one.factors.items():
        assert update.A.dtype == torch.float32
        assert torch.equal(update.B, other.factors[site].B)
    assert model.lm_head.weight.dtype == torch.bfloat16


def test_a_block_of_another_base_or_with_sites_that_the_model_has_not_is_refused():
    model = tiny_llama()
    block, name = tiny_block(model, 1), "model.layers.0.mlp.up_proj"
    owned = CapabilityBlock(replace(block.card, base=fingerprint(model)), block.factors)
    assert len(IntruderReduction()([owned], model)) == 1
    with pytest.raises(IncompatibleBlock, match="was trained on base ffff"):
        IntruderReduction()([CapabilityBlock(replace(block.card, base="f" * 64), block.factors)], model)

    def refused(site: str, width_in: int, width_out: int, message: str, base: nn.Module = model) -> None:
        factors = {site: LoraFactors(torch.ones(1, width_in), torch.ones(width_out, 1), 1.0)}
        with pytest.raises(IncompatibleBlock, match=message):
            IntruderReduction()([CapabilityBlock(block.card, factors)], base)

    refused("model.layers.9.mlp.up_proj", 32, 48, "is no linear layer of the model")
    refused("model.norm", 32, 32, "is no linear layer of the model")
    refused(name, 48, 32, "from 48 to 32, but in the model that maps 32 to 48")
    quantised = copy.deepcopy(model)
    weight = torch.zeros(48, 32, dtype=torch.int8)
    quantised.get_submodule(name).weight = nn.Parameter(weight, requires_grad=False)
    refused(name, 32, 48, "is quantised", quantised)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 0}, "top_k 0 looks at no direction"),
        ({"epsilon": 1.5}, "epsilon 1.5 is outside"),
        ({"mitigation_lambda": -0.1}, "mitigation_lambda -0.1 is outside"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        IntruderReduction(**settings)
