"""WUDI's closed form against the normal equations and against the paper's own steps of Adam."""

import pytest
import torch
from weighted_experts import furthest, parents, true_deltas

from pmemx.core.block import LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.core.merge import Experts, Merged, Parent
from pmemx.merge.wudi import Wudi

# With eight experts of ranks 1 to 4, rows are independent in the first, and more than the site is wide in the second.
WIDE = {"a": (28, 20), "b": (48, 56), "c": (30, 30)}
NARROW = {"a": (12, 16), "b": (9, 20), "c": (10, 10)}
BOTH = pytest.mark.parametrize("widths", [WIDE, NARROW], ids=["wide", "narrow"])


def merged(experts: list[Parent], **settings) -> Merged:
    return Wudi(**settings)(experts, name="m", generator=torch.Generator())


def one_site(*updates: LoraFactors, weights: tuple[float, ...] = ()) -> torch.Tensor:
    experts = Experts(tuple({"a": update} for update in updates), weights or (1.0,) * len(updates))
    return Wudi().merged_sites(experts, torch.Generator())["a"].factors.delta()


def dense(experts: list[Parent], site: str) -> list[tuple[torch.Tensor, float]]:
    """Updates in float64 with their weights."""
    return [
        (update.scale * update.B.double() @ update.A.double(), parent.weight)
        for parent in experts
        if (update := parent.block.factors.get(site)) is not None
    ]


def true_sums(experts: list[Parent], widths: dict[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
    return {site: sum(w * D for D, w in dense(experts, site)) for site in widths}


def objective(M: torch.Tensor, updates: list[tuple[torch.Tensor, float]]) -> torch.Tensor:
    """The paper's loss (its equation 12), with weighted experts."""
    D, weights = torch.stack([D for D, _ in updates]), torch.tensor([w for _, w in updates])
    answers = (M - weights[:, None, None] * D) @ D.mT
    return (answers.square().sum(dim=(1, 2)) / D.square().sum(dim=(1, 2))).sum()


@BOTH
def test_the_merge_is_the_closed_form_and_solves_the_normal_equations(widths):
    experts = parents(widths=widths)
    found, reference = merged(experts), {}
    for site in widths:
        updates = dense(experts, site)
        G = [D.T @ D / D.square().sum() for D, _ in updates]
        right = sum(w * D @ g for (D, w), g in zip(updates, G, strict=True))
        reference[site] = right @ torch.linalg.pinv(sum(G), rtol=1e-12, hermitian=True)
        residual = found.block.factors[site].delta().double() @ sum(G) - right
        assert residual.abs().max() < 1e-5 * right.abs().max()
    assert furthest(found.block, reference) < 1e-4 * max(float(M.abs().max()) for M in reference.values())
    assert found.lost_energy == 0.0


@BOTH
@pytest.mark.parametrize(("steps", "lr", "reach"), [(300, 1e-5, 0.9), (300, 1e-2, 0.0)], ids=["paper", "far"])
def test_no_number_of_steps_finds_less_interference(widths, steps, lr, reach):
    experts = parents(widths=widths)
    updates = dense(experts, "a")
    M = torch.nn.Parameter(sum(w * D for D, w in updates))
    before = float(objective(M, updates).detach())
    optimiser = torch.optim.Adam([M], lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        objective(M, updates).backward()
        optimiser.step()
    after = float(objective(M, updates).detach())
    least = float(objective(merged(experts).block.factors["a"].delta(), updates))
    # What factors in float32 can show of it.
    assert least <= after + 1e-12 * before
    # Steps of the paper's size hardly begin.
    assert reach * before < after < before and least < 0.6 * before


@BOTH
@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_a_ridge_draws_it_to_the_sum(widths, ridge):
    experts = parents(widths=widths)
    found = merged(experts, ridge=ridge).block
    for site, total in true_sums(experts, widths).items():
        M = found.factors[site].delta().double().requires_grad_()
        (objective(M, dense(experts, site)) + ridge * (M - total).square().sum()).backward()
        assert M.grad.abs().max() < 1e-5 * total.abs().max()
    far = merged(experts, ridge=1e8).block
    assert furthest(far, true_sums(experts, widths)) < 1e-5


def test_nearly_equal_rows_do_not_blow_up_under_a_ridge():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, 30, generator=generator)
    updates = [
        LoraFactors(
            start + 0.05 * torch.randn(4, 30, generator=generator), torch.randn(20, 4, generator=generator), 1.0
        )
        for _ in range(5)
    ]
    experts = Experts(tuple({"a": update} for update in updates), (1.0,) * 5)
    total = sum(update.delta() for update in updates).norm()
    exact, drawn = (
        Wudi(ridge=ridge).merged_sites(experts, torch.Generator())["a"].factors.delta().norm() / total
        for ridge in (0.0, 0.1)
    )
    assert drawn < 1 < 5 < exact


def test_a_ridge_below_zero_is_refused():
    with pytest.raises(ConfigError, match=r"ridge = -0\.1 rewards interference"):
        Wudi(ridge=-0.1)


def test_independent_rows_are_answered_as_each_expert_answers_them():
    experts = parents(widths=WIDE)
    found = merged(experts).block
    for site in WIDE:
        M = found.factors[site].delta().double()
        for D, w in dense(experts, site):
            assert ((M - w * D) @ D.T).abs().max() < 1e-4 * (D @ D.T).abs().max()


def test_experts_that_read_different_inputs_are_summed():
    factors = []
    for number in range(8):
        generator = torch.Generator().manual_seed(number)
        A = torch.zeros(2, 24)
        A[:, 3 * number : 3 * number + 3] = torch.randn(2, 3, generator=generator)
        factors.append(LoraFactors(A, torch.randn(16, 2, generator=generator), 0.5 + number))
    assert (one_site(*factors) - sum(update.delta() for update in factors)).abs().max() < 2e-5


def test_answers_to_one_input_are_averaged_by_hand():
    row = torch.tensor([[0.6, 0.8, 0.0]])
    one, other = torch.tensor([[3.0], [0.0]]), torch.tensor([[1.0], [2.0]])
    updates = LoraFactors(row, one, 1.0), LoraFactors(row, other, 2.0)
    # (3, 0) and 2 (1, 2); with weights 1 and 3, (3, 0) and 6 (1, 2).
    assert (one_site(*updates) - torch.tensor([[2.5], [2.0]]) @ row).abs().max() < 1e-6
    assert (one_site(*updates, weights=(1.0, 3.0)) - torch.tensor([[4.5], [6.0]]) @ row).abs().max() < 1e-6
    # Inputs of an expert of weight 0 are asked to be answered by nothing.
    assert (one_site(*updates, weights=(1.0, 0.0)) - torch.tensor([[1.5], [0.0]]) @ row).abs().max() < 1e-6


def test_rounding_is_no_input():
    expert = parents(4, weights=[1.0])[0].block.factors["a"]
    other = LoraFactors(expert.A / 3, expert.B * 0.9, expert.scale)
    # Every row is answered twice, by D and by 0.3 D.
    assert (one_site(expert, other) - 0.65 * expert.delta()).abs().max() < 1e-5


def test_an_expert_of_zero_has_no_say():
    experts = [parent.block.factors["a"] for parent in parents()]
    nothing = LoraFactors(torch.randn(3, 24, generator=torch.Generator().manual_seed(0)), torch.zeros(16, 3), 1.0)
    assert (one_site(*experts) - one_site(nothing, *experts)).abs().max() < 1e-6
    assert not one_site(nothing, nothing).any()


def test_a_smaller_rank_tells_what_it_lost():
    experts = parents(widths=WIDE)
    whole, cut = merged(experts), merged(experts, rank="largest")
    energies = [torch.linalg.svdvals(update.delta()).square() for update in whole.block.factors.values()]
    lost, total = sum(float(S[4:].sum()) for S in energies), sum(float(S.sum()) for S in energies)
    assert cut.lost_energy == pytest.approx(lost / total, rel=1e-4)


def test_it_is_not_the_sum():
    experts = parents()
    assert furthest(merged(experts).block, true_deltas(experts)) > 0.1


def test_the_site_is_never_dense():
    # 20,000 by 20,000 would be 1.6 GB in float32.
    generator = torch.Generator().manual_seed(0)
    updates = tuple(
        LoraFactors(torch.randn(2, 20_000, generator=generator), torch.randn(20_000, 2, generator=generator), 1.0)
        for _ in range(3)
    )
    experts = Experts(tuple({"a": update} for update in updates), (1.0,) * 3)
    assert Wudi().merged_sites(experts, torch.Generator())["a"].factors.rank == 6
