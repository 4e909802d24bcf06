"""Where experts are born: sites by name, experts by layer, and settings that are refused."""

import pytest
import torch
from torch import nn

from pmemx.core.errors import ConfigError
from pmemx.core.structure import LinearSites, Structure
from pmemx.runtime.linear_sites import linear_sites
from pmemx.together.hydralora import HydraLora
from pmemx.together.loramoe import LoraMoe
from pmemx.together.mixlora import MixLora
from pmemx.together.mola import Mola


def sites(layers: int) -> LinearSites:
    widths = {"q_proj": (4, 4), "gate_proj": (4, 6), "up_proj": (4, 6), "down_proj": (6, 4)}
    return LinearSites(
        {f"model.layers.{layer}.x.{name}": width for layer in range(layers) for name, width in widths.items()}
    )


def born(structure: Structure, layers: int):
    return structure.experts(sites(layers), torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (32, [2] * 8 + [4] * 8 + [6] * 8 + [8] * 8),
        (8, [2, 2, 4, 4, 6, 6, 8, 8]),
        (6, [2, 4, 4, 6, 8, 8]),
        (4, [2, 4, 6, 8]),
        (3, [2, 6, 8]),
        (2, [4, 8]),
        (1, [6]),
    ],
)
def test_a_layer_belongs_to_the_quarter_in_which_its_middle_lies(layers, expected):
    experts = born(Mola(), layers)
    standing = [sum(f"model.layers.{layer}.x.q_proj" in own for own in experts) for layer in range(layers)]
    assert standing == expected and len(experts) == max(expected)


def test_the_plain_sites_of_mixlora_are_the_first_experts_alone():
    first, *others = born(MixLora(num_experts=3, plain=("q_proj",)), 2)
    assert list(first) == list(sites(2).widths)
    assert all(list(own) == [name for name in sites(2).widths if not name.endswith("q_proj")] for own in others)


def test_widths_are_those_of_the_sites():
    for structure in (MixLora(plain=("q_proj",)), LoraMoe(), Mola(), HydraLora()):
        for own in born(structure, 4):
            for name, factors in own.items():
                assert (factors.A.shape[1], factors.B.shape[0]) == sites(4).widths[name]


def test_the_sites_of_a_model_are_its_linear_layers_without_the_head():
    layer = nn.ModuleDict({"up": nn.Linear(3, 5), "norm": nn.LayerNorm(3)})
    model = nn.ModuleDict({"layers": nn.ModuleList([layer]), "lm_head": nn.Linear(3, 7)})
    assert linear_sites(nn.ModuleDict({"model": model})).widths == {"model.layers.0.up": (3, 5)}


def test_a_site_that_the_base_has_not_is_refused():
    with pytest.raises(ConfigError, match="no linear layer of the base is called 'w1'; there are down_proj, gate_proj"):
        born(LoraMoe(targets=("up_proj", "w1")), 2)


@pytest.mark.parametrize("structure", [MixLora, LoraMoe, HydraLora])
def test_settings_without_experts_rank_or_scale_are_refused(structure):
    with pytest.raises(ConfigError, match=r"structure.num_experts = \(0,\) leaves a layer without experts"):
        structure(num_experts=0)
    with pytest.raises(ConfigError, match=r"structure\.rank = 0 must be at least 1"):
        structure(rank=0)
    with pytest.raises(ConfigError, match=r"structure\.alpha = 0\.0 must be positive"):
        structure(alpha=0.0)


def test_a_quarter_without_experts_is_refused():
    for numbers in ((2, 0, 4), ()):
        with pytest.raises(ConfigError, match="leaves a layer without experts"):
            Mola(num_experts=numbers)
