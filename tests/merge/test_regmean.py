"""RegMean against a regression on the data themselves; what no data show, and moments that do not fit."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from weighted_experts import WIDTHS, furthest, parents, true_deltas

from pmemx.core.block import LoraFactors
from pmemx.core.errors import ConfigError, IncompatibleBlock
from pmemx.core.merge import Experts, Merged, Parent
from pmemx.merge.linear import Linear
from pmemx.merge.regmean import RegMean


def inputs(number: int, tokens: int) -> dict[str, torch.Tensor]:
    """What every site reads in expert `number`'s data: features of unlike size that depend on each other."""
    generator = torch.Generator().manual_seed(100 + number)
    found = {}
    for site, (width, _) in WIDTHS.items():
        mix = torch.randn(width, width, generator=generator) * torch.linspace(0.2, 3, width)
        found[site] = torch.randn(tokens, width, generator=generator) @ mix
    return found


def with_data(experts: Sequence[Parent], tokens: int = 200) -> list[Parent]:
    return [
        replace(parent, moments={site: x.T @ x / tokens for site, x in inputs(number, tokens).items()})
        for number, parent in enumerate(experts)
    ]


def merged(experts: Sequence[Parent], **settings) -> Merged:
    return RegMean(**settings)(experts, name="m", generator=torch.Generator())


def delta(parent: Parent, site: str) -> torch.Tensor:
    """Zero where the expert does not adapt the site."""
    width_in, width_out = WIDTHS[site]
    update = parent.block.factors.get(site)
    return torch.zeros(width_out, width_in).double() if update is None else update.delta().double()


def one_site(*experts: tuple[LoraFactors, torch.Tensor, float], **settings) -> torch.Tensor:
    updates, moments, weights = zip(*experts, strict=True)
    found = RegMean(**settings).merged_sites(
        Experts(tuple({"a": u} for u in updates), weights, tuple({"a": m} for m in moments)), torch.Generator()
    )
    return found["a"].factors.delta()


def test_the_merge_is_the_regression_on_what_the_experts_answer():
    # Expert e's rows count w_e times; an expert without the site answers its rows with zero.
    experts, reference = parents(), {}
    for site in WIDTHS:
        xs = [(p.weight / 200) ** 0.5 * inputs(n, 200)[site].double() for n, p in enumerate(experts)]
        answers = [x @ delta(p, site).T for x, p in zip(xs, experts, strict=True)]
        reference[site] = torch.linalg.lstsq(torch.cat(xs), torch.cat(answers)).solution.T
    found = merged(with_data(experts), off_diagonal=1.0, ridge=1e-12)
    assert furthest(found.block, reference) < 2e-5
    assert found.lost_energy == 0.0


@pytest.mark.parametrize("off_diagonal", [0.0, 0.5, 0.9])
def test_the_merge_is_the_dense_formula(off_diagonal):
    experts, reference = with_data(parents()), {}
    for site, (width, _) in WIDTHS.items():
        G = []
        for parent in experts:
            scaled = off_diagonal * torch.ones(width, width) + (1 - off_diagonal) * torch.eye(width)
            G.append(parent.weight * parent.moments[site].double() * scaled)
        right = sum(delta(parent, site) @ g for parent, g in zip(experts, G, strict=True))
        reference[site] = right @ torch.linalg.inv(sum(G))
    assert furthest(merged(experts, off_diagonal=off_diagonal, ridge=1e-12).block, reference) < 5e-6
    # The ridge as it is changes little even where features are as unlike as here.
    assert furthest(merged(experts, off_diagonal=off_diagonal).block, reference) < 3e-3


def test_numbers_are_averaged_by_how_large_their_input_is_by_hand():
    def number(value: float) -> LoraFactors:
        return LoraFactors(torch.ones(1, 1), torch.tensor([[value]]), 1.0)

    small, large = torch.tensor([[1.0]]), torch.tensor([[3.0]])
    even, more = (one_site((number(2.0), small, w), (number(4.0), large, 1.0), ridge=1e-9) for w in (1.0, 6.0))
    assert (even.item(), more.item()) == pytest.approx((3.5, 24 / 9))


def test_data_that_differ_leave_every_expert_what_it_answers():
    generator = torch.Generator().manual_seed(0)
    experts, data = [], []
    for number in range(8):
        x = torch.zeros(40, 24)
        x[:, 3 * number : 3 * number + 3] = torch.randn(40, 3, generator=generator)
        update = LoraFactors(
            torch.randn(2, 24, generator=generator), torch.randn(16, 2, generator=generator), 0.5 + number
        )
        experts.append((update, x.T @ x / 40, 1.0 + number))
        data.append(x)
    M = one_site(*experts, off_diagonal=1.0, ridge=1e-9)
    for (update, _, _), x in zip(experts, data, strict=True):
        assert (x @ M.T - x @ update.delta().T).abs().max() < 1e-4


def test_in_directions_that_no_data_show_it_is_the_mean():
    # Two tokens of each of eight experts show 16 of 24 directions; two features are zero for everybody.
    experts, shown = [], []
    for number, parent in enumerate(parents(3)):
        x = inputs(number, 2)["a"]
        x[:, :2] = 0
        shown.append(x)
        experts.append((parent.block.factors["a"], x.T @ x / 2, parent.weight))
    total = sum(weight for _, _, weight in experts)
    mean = sum(weight / total * update.delta() for update, _, weight in experts)
    directions = torch.linalg.svd(torch.cat(shown)).Vh
    # The ridge stands above what rounding of moments in float32 makes of the other directions.
    apart = (one_site(*experts, off_diagonal=1.0, ridge=1e-2) - mean) @ directions.T
    assert apart[:, 16:].abs().max() < 1e-4 < 0.1 < apart[:, :16].abs().max()
    # Off-diagonal entries that count less leave only the two features without data.
    assert (one_site(*experts) - mean)[:, :2].abs().max() < 1e-6


def test_a_site_that_reads_zeros_only_takes_the_mean():
    experts = [(p.block.factors["a"], torch.zeros(24, 24), p.weight) for p in parents()]
    total = sum(weight for _, _, weight in experts)
    mean = sum(weight / total * update.delta() for update, _, weight in experts)
    assert (one_site(*experts) - mean).abs().max() < 1e-6


def test_how_much_all_data_weigh_does_not_matter():
    experts = with_data(parents())
    scaled = [replace(p, moments={site: 1e3 * m for site, m in p.moments.items()}) for p in experts]
    one, other = merged(experts).block, merged(scaled).block
    assert furthest(one, {site: update.delta() for site, update in other.factors.items()}) < 2e-6


def test_it_is_neither_the_sum_nor_the_mean():
    experts = with_data(parents())
    assert furthest(merged(experts).block, true_deltas(experts)) > 0.1
    total = sum(parent.weight for parent in experts)
    assert furthest(merged(experts).block, {s: d / total for s, d in true_deltas(experts).items()}) > 0.05


def test_a_smaller_rank_tells_what_it_lost():
    experts = with_data(parents())
    whole, cut = merged(experts), merged(experts, rank="largest")
    energies = [torch.linalg.svdvals(update.delta()).square() for update in whole.block.factors.values()]
    lost, total = sum(float(S[4:].sum()) for S in energies), sum(float(S.sum()) for S in energies)
    assert cut.lost_energy == pytest.approx(lost / total, rel=1e-4)


class TestRefusals:
    def test_a_parent_without_moments(self):
        match = r"RegMean reads second moments of what every site reads, but e0 comes without those of a; collect them"
        with pytest.raises(ConfigError, match=match):
            merged(parents())

    def test_a_parent_without_moments_where_it_adapts_nothing(self):
        experts = with_data(parents())
        first = replace(experts[0], moments={site: m for site, m in experts[0].moments.items() if site != "b"})
        assert "b" not in first.block.factors
        with pytest.raises(ConfigError, match="e0 comes without those of b"):
            merged([first, *experts[1:]])

    def test_moments_of_another_width(self):
        experts = with_data(parents())
        wrong = replace(experts[2], moments=experts[2].moments | {"c": torch.eye(11)})
        with pytest.raises(IncompatibleBlock, match=r"e2 at c have shape \(11, 11\), but the site reads 10 numbers"):
            merged([*experts[:2], wrong])

    def test_moments_that_are_no_numbers(self):
        experts = with_data(parents())
        wrong = replace(experts[2], moments=experts[2].moments | {"c": torch.full((10, 10), float("inf"))})
        with pytest.raises(ConfigError, match="moments of e2 at c hold NaN or infinity"):
            merged([*experts[:2], wrong])

    @pytest.mark.parametrize("weight", [0.0, -1.0])
    def test_data_that_count_less_than_nothing(self, weight):
        with pytest.raises(ConfigError, match=r"data would count -?\d times; give positive weights"):
            merged(with_data(parents(weights=(1.0, weight))))

    @pytest.mark.parametrize("settings", [{"off_diagonal": 1.1}, {"off_diagonal": -0.1}, {"ridge": 0.0}])
    def test_settings_that_mean_nothing(self, settings):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            RegMean(**settings)


def test_merges_that_read_no_moments_take_parents_that_have_them():
    experts = with_data(parents())
    assert furthest(Linear()(experts, name="m", generator=torch.Generator()).block, true_deltas(experts)) < 2e-6
