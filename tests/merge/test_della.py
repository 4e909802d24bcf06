"""DELLA against its definition entry by entry, and against mergekit's rescaling."""

import pytest
import torch
from weighted_experts import WIDTHS, furthest, parents

from pmemx.core.errors import ConfigError
from pmemx.merge.dare import Dare
from pmemx.merge.della import Della
from pmemx.merge.deltas import Deltas
from pmemx.merge.elect import Elect
from pmemx.merge.entrywise import EntrywiseMerge
from pmemx.merge.space import Stack

Row = list[float]


def stack_of(*rows: Row) -> Stack:
    """Every row is an expert of one row."""
    tensors = torch.tensor(rows, dtype=torch.float64)[:, None]
    return Stack(tuple(range(len(rows))), tensors, torch.ones(len(rows), dtype=torch.float64))


def drawn(della: Della, stack: Stack, seed: int = 0) -> torch.Tensor:
    return della.pruner(lambda: iter(()), torch.Generator().manual_seed(seed))(stack)


def probabilities(row: Row, density: float, epsilon: float) -> Row:
    """Of the definition: one entry after the other, by its place in the sorted row."""
    smaller = sorted(abs(entry) for entry in row)
    return [density - epsilon + 2 * epsilon * smaller.index(abs(entry)) / (len(row) - 1) for entry in row]


def many_draws(della: Della, row: Row, count: int = 4000) -> torch.Tensor:
    """Experts that are all the same row: a draw each."""
    return drawn(della, stack_of(*[row] * count))[:, 0]


ROW = [4.0, -1.0, 3.0, 0.5, -2.0]


def test_density_1_keeps_every_bit_and_draws_nothing():
    generator = torch.Generator().manual_seed(0)
    state, stack = generator.get_state(), stack_of(ROW, ROW[::-1])
    assert torch.equal(Della(density=1.0).pruner(lambda: iter(()), generator)(stack), stack.tensors)
    assert torch.equal(generator.get_state(), state)


def test_large_entries_of_a_row_are_kept_more_often_by_rank():
    kept = (many_draws(Della(density=0.5, epsilon=0.3), ROW) != 0).double().mean(dim=0)
    # Five standard deviations of 4,000 draws are 0.04.
    assert kept.tolist() == pytest.approx([0.8, 0.35, 0.65, 0.2, 0.5], abs=0.04)


def test_what_is_kept_is_divided_by_its_own_probability():
    found = many_draws(Della(density=0.5, epsilon=0.3), ROW)
    for entry, keep, values in zip(ROW, [0.8, 0.35, 0.65, 0.2, 0.5], found.T, strict=True):
        assert sorted(set(values.tolist())) == pytest.approx(sorted([0.0, entry / keep]), abs=1e-12)


def test_the_mean_of_the_draws_is_the_tensor():
    mean = many_draws(Della(density=0.5, epsilon=0.3), ROW).mean(dim=0)
    # An entry of t kept with p has the standard deviation t sqrt((1 - p) / p).
    errors = [abs(t) * ((1 - p) / p / 4000) ** 0.5 for t, p in zip(ROW, probabilities(ROW, 0.5, 0.3), strict=True)]
    assert all(abs(m - t) < 5 * error for m, t, error in zip(mean.tolist(), ROW, errors, strict=True))


def test_ranks_are_those_of_a_row_and_not_of_the_tensor():
    small, large = [0.1, 0.2, 0.3], [10.0, 20.0, 30.0]
    tensors = torch.tensor([small, large], dtype=torch.float64).expand(4000, 2, 3)
    stack = Stack(tuple(range(4000)), tensors, torch.ones(4000, dtype=torch.float64))
    kept = (drawn(Della(density=0.5, epsilon=0.4), stack) != 0).double().mean(dim=0)
    assert (kept - torch.tensor([0.1, 0.5, 0.9])).abs().max() < 0.04


def test_without_a_window_it_is_dare():
    row = [1.0] * 3000
    della, dare = Della(density=0.4, epsilon=0.0), Dare(density=0.4)
    found, other = (p.pruner(lambda: iter(()), torch.Generator().manual_seed(0))(stack_of(row)) for p in (della, dare))
    for values in (found, other):
        assert sorted(set(values.flatten().tolist())) == pytest.approx([0.0, 2.5], abs=1e-6)
        assert (values != 0).double().mean() == pytest.approx(0.4, abs=0.045)


def test_a_merge_is_that_of_the_definition_entry_by_entry():
    density, epsilon, experts = 0.6, 0.25, parents()
    merge = EntrywiseMerge(combine=Elect(), prune=Della(density=density, epsilon=epsilon), space=Deltas(), rank=1.0)
    merged = merge(experts, name="m", generator=torch.Generator().manual_seed(3))
    generator, reference = torch.Generator().manual_seed(3), {}
    for site, (width_in, width_out) in WIDTHS.items():
        adapting = [parent for parent in experts if site in parent.block.factors]
        draws = torch.rand(len(adapting), width_out, width_in, generator=generator).tolist()
        deltas = [parent.block.factors[site].delta().tolist() for parent in adapting]
        reference[site] = torch.zeros(width_out, width_in)
        for i in range(width_out):
            keep = [probabilities(delta[i], density, epsilon) for delta in deltas]
            for j in range(width_in):
                left = [
                    (parent.weight, delta[i][j] / keep[e][j])
                    for e, (parent, delta) in enumerate(zip(adapting, deltas, strict=True))
                    if draws[e][i][j] < keep[e][j]
                ]
                sign = 1 if sum(entry for _, entry in left) >= 0 else -1
                agreeing = [weight * entry for weight, entry in left if entry * sign > 0]
                reference[site][i, j] = sum(agreeing) / max(1, len(agreeing))
    assert furthest(merged.block, reference) < 2e-6


def test_mergekit_rescales_a_tensor_by_one_factor_and_so_favours_large_entries():
    row = torch.tensor(ROW, dtype=torch.float64)
    found = many_draws(Della(density=0.5, epsilon=0.4), ROW)
    masked = row * (found != 0)
    mergekits = masked * (row.abs().sum() / masked.abs().sum(dim=1, keepdim=True).clamp_min(1e-7))
    assert (found.mean(dim=0) / row - 1).abs().max() < 0.25
    assert (mergekits.mean(dim=0) / row)[0] > 1.2 and (mergekits.mean(dim=0) / row)[3] < 0.4


@pytest.mark.parametrize(
    ("density", "epsilon", "message"),
    [
        (0.5, 0.5, r"keep with 0 to 1; give an epsilon below 0\.5 and up to 0\.5"),
        (0.9, 0.2, r"keep with 0\.7 to 1\.1; give an epsilon below 0\.9 and up to 0\.1"),
        (0.5, -0.1, r"epsilon -0\.1 is half a window"),
        (0.5, float("nan"), "epsilon nan"),
        (0.0, 0.1, "density 0"),
    ],
)
def test_probabilities_outside_of_0_to_1_are_refused(density, epsilon, message):
    with pytest.raises(ConfigError, match=message):
        Della(density=density, epsilon=epsilon)
