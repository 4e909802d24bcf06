"""Experts that differ in everything they may differ in, and the same experts as adapters of a PEFT model."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.merge import Parent

# PEFT walks over modules, pmemx over sorted names: here both orders are one, so that draws come in one order.
WIDTHS = OrderedDict(a=(24, 16), b=(16, 40), c=(10, 10))


def expert(number: int, rank: int, widths: Mapping[str, tuple[int, int]] = WIDTHS) -> CapabilityBlock:
    generator = torch.Generator().manual_seed(number)
    factors = {}
    for site, (width_in, width_out) in widths.items():
        if not (site == "b" and number % 3 == 0):
            A = torch.randn(rank, width_in, generator=generator) * 0.2
            B = torch.randn(width_out, rank, generator=generator) * 0.2
            factors[site] = LoraFactors(A, B, (1 + number) / rank)  # alpha is 1 + number
    return CapabilityBlock(BlockCard(f"e{number}", f"d{number}", "base", licence="MIT"), factors)


def parents(
    rank: int | None = None,
    weights: Sequence[float] = (1, 0.5, 2, 0.25, 1, 0.7, 1.3, 0.1),
    widths: Mapping[str, tuple[int, int]] = WIDTHS,
) -> list[Parent]:
    """Eight experts; rank None mixes ranks 1 to 4. Every third one does not adapt site b."""
    return [
        Parent(expert(number, rank or 1 + number % 4, widths), float(weight), f"{number:064d}")
        for number, weight in enumerate(weights)
    ]


def peft_model(parents: Sequence[Parent], *, base: nn.Module | None = None, rslora: bool = False) -> PeftModel:
    """base: None makes one of WIDTHS. rslora: alpha / sqrt(r) instead of alpha / r, with the same alpha and factors."""
    base = base or nn.Sequential(OrderedDict((site, nn.Linear(*widths)) for site, widths in WIDTHS.items()))
    model = None
    for number, parent in enumerate(parents):
        factors = parent.block.factors
        first = next(iter(factors.values()))
        config = LoraConfig(
            r=first.rank, lora_alpha=round(first.scale * first.rank), target_modules=list(factors), use_rslora=rslora
        )
        if model is None:
            model = get_peft_model(base, config, adapter_name=f"px{number}")
        else:
            model.add_adapter(f"px{number}", config)
        for site, update in factors.items():
            layer = model.get_base_model().get_submodule(site)
            layer.lora_A[f"px{number}"].weight.data.copy_(update.A)
            layer.lora_B[f"px{number}"].weight.data.copy_(update.B)
    assert model is not None
    return model


def peft_deltas(
    parents: Sequence[Parent], combination_type: str, *, rslora: bool = False, **settings: object
) -> dict[str, torch.Tensor]:
    """What PEFT's add_weighted_adapter makes of them, by site."""
    model = peft_model(parents, rslora=rslora)
    names, weights = [f"px{n}" for n in range(len(parents))], [parent.weight for parent in parents]
    model.add_weighted_adapter(names, weights, "pxmerged", combination_type, **settings)
    return {site: model.get_base_model().get_submodule(site).get_delta_weight("pxmerged").detach() for site in WIDTHS}


def true_deltas(parents: Sequence[Parent]) -> dict[str, torch.Tensor]:
    """sum_e w_e dW_e, dense and in float64."""
    total = {site: torch.zeros(out, into, dtype=torch.float64) for site, (into, out) in WIDTHS.items()}
    for parent in parents:
        for site, update in parent.block.factors.items():
            total[site] += parent.weight * update.scale * update.B.double() @ update.A.double()
    return total


def furthest(block: CapabilityBlock, deltas: dict[str, torch.Tensor]) -> float:
    """The largest difference of any entry of any site."""
    assert block.factors.keys() == deltas.keys()
    return max(float((block.factors[site].delta() - deltas[site]).abs().max()) for site in deltas)
