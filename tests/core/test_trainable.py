"""Factors train inside the layer that serves them: gradients are those of the dense sum, and a shared A stays one."""

import pytest
import torch
from torch import Tensor

from pmemx.core.bank import ExpertBank, SiteFactors
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.mix import DenseMix, Mix, PaddedMix, SegmentMix, SequenceMix
from pmemx.core.routing import Routing
from pmemx.core.trainable import TrainableFactors

BATCH, TOKEN, IN, OUT, EXPERTS = 3, 5, 16, 24, 9
TIED = (1, 5)
"""Two experts of rank 2 with one A at "site", and each its own at "other"."""


def blocks() -> list[CapabilityBlock]:
    """Nine experts of ranks 1 to 4 and of nine scales, one of which leaves the site out."""
    generator = torch.Generator().manual_seed(0)
    shared, made = torch.randn(2, IN, generator=generator), []
    for number in range(EXPERTS):
        rank = 1 + number % 4
        factors = {}
        for site in ("other",) if number == 4 else ("site", "other"):
            A = shared if site == "site" and number in TIED else torch.randn(rank, IN, generator=generator)
            factors[site] = LoraFactors(A, torch.randn(OUT, rank, generator=generator), 0.5 + number / 8)
        made.append(CapabilityBlock(BlockCard(name=f"e{number}", domain="d", base=""), factors))
    return made


def trainable() -> tuple[TrainableFactors, SiteFactors, list[CapabilityBlock]]:
    """In float64, with the site that one expert leaves out."""
    made = blocks()
    bank = ExpertBank(made, dtype=torch.float64)
    factors = TrainableFactors(bank, made).double()
    return factors, dict(bank.items())["site"], made


def routing(tokens: int, chosen: int) -> Routing:
    """Random distinct experts with random weights, some of them zero."""
    generator = torch.Generator().manual_seed(chosen)
    index = torch.rand(BATCH, tokens, EXPERTS, generator=generator).argsort(dim=-1)[..., :chosen]
    weight = torch.rand(BATCH, tokens, chosen, generator=generator).double()
    weight[0, 0] = 0
    return Routing(index, weight.requires_grad_(), EXPERTS)


def x() -> Tensor:
    return torch.randn(BATCH, TOKEN, IN, generator=torch.Generator().manual_seed(1)).double().requires_grad_()


def y() -> Tensor:
    return torch.randn(BATCH, TOKEN, OUT, generator=torch.Generator().manual_seed(2)).double()


class Dense:
    """The papers' sum, with an A and a B of its own for every expert but the two that share one A."""

    def __init__(self, made: list[CapabilityBlock]) -> None:
        self.A: dict[int, Tensor] = {}
        self.B: dict[int, Tensor] = {}
        self.scale = {number: block.factors["site"].scale for number, block in enumerate(made) if number != 4}
        for number in self.scale:
            self.A[number] = made[number].factors["site"].A.double().requires_grad_()
            self.B[number] = made[number].factors["site"].B.double().requires_grad_()
        self.A[TIED[1]] = self.A[TIED[0]]

    def leaves(self) -> list[Tensor]:
        return [*{id(A): A for A in self.A.values()}.values(), *self.B.values()]

    def padded(self, number: int) -> tuple[Tensor, Tensor]:
        """A and scaled B with zeros up to rank 4."""
        A, B = torch.zeros(4, IN).double(), torch.zeros(OUT, 4).double()
        if number in self.A:
            rank = self.A[number].shape[0]
            A = torch.cat([self.A[number], A[rank:]])
            B = torch.cat([self.scale[number] * self.B[number], B[:, rank:]], dim=1)
        return A, B

    def add(self, y: Tensor, x: Tensor, given: Routing, before: bool) -> Tensor:
        weight = given.dense().expand(BATCH, TOKEN, EXPERTS)
        A, B = (torch.stack(parts) for parts in zip(*map(self.padded, range(EXPERTS)), strict=True))
        if before:
            A, B = torch.einsum("bte,eri->btri", weight, A), torch.einsum("bte,eor->btor", weight, B)
            return y + torch.einsum("btor,btri,bti->bto", B, A, x)
        return y + torch.einsum("bte,eor,eri,bti->bto", weight, B, A, x)


def by_expert(factors: TrainableFactors) -> tuple[Tensor, Tensor]:
    """The gradients of the distinct rows of A, and of those of B."""
    own = factors.sites[0]
    return own.A.grad, own.B.grad


CASES = {
    "dense-token": (lambda r: DenseMix(r, "after"), TOKEN, 4),
    "dense-sequence": (lambda r: DenseMix(r, "after"), 1, EXPERTS),
    "dense-before": (lambda r: DenseMix(r, "before"), TOKEN, 4),
    "sequence-3": (lambda r: SequenceMix(r, "after"), 1, 3),
    "sequence-before": (lambda r: SequenceMix(r, "before"), 1, 3),
    "segments-2": (SegmentMix, TOKEN, 2),
    "segments-5": (SegmentMix, TOKEN, 5),
    "padded-2": (PaddedMix, TOKEN, 2),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("gate_trains", [True, False])
def test_every_way_of_mixing_gives_factors_the_gradients_of_the_dense_sum(case, gate_trains):
    make, tokens, chosen = CASES[case]
    factors, site, made = trainable()
    dense, before = Dense(made), case.endswith("before")
    seen: list[list[Tensor]] = []
    for mix in (True, False):
        given, inputs = routing(tokens, chosen), x()
        given.weight.requires_grad_(gate_trains)
        if mix:
            factors.bind()
            planned: Mix = make(given)
            out = planned.add(y(), inputs, site)
        else:
            out = dense.add(y(), inputs, given, before)
        out.square().sum().backward()
        A, B = (
            by_expert(factors)
            if mix
            else (
                torch.cat([leaf.grad for leaf in dense.leaves()[: len(dense.A) - 1]]),
                torch.cat([leaf.grad.T for leaf in dense.B.values()]),
            )
        )
        weight = given.weight.grad if gate_trains else torch.zeros(1)
        # An expert of weight zero is left out by the sparse ways, so that its weight has no gradient there.
        if gate_trains and case.startswith(("segments", "padded")):
            weight[0, 0] = 0
        seen.append([out.detach(), A, B, inputs.grad, weight])
    for found, expected in zip(*seen, strict=True):
        assert torch.allclose(found, expected, atol=1e-10)
    assert seen[0][1].abs().min() > 0 or case.startswith(("segments", "padded", "sequence"))


def test_gradients_agree_with_finite_differences():
    factors, site, _ = trainable()
    own, given, inputs = factors.sites[0], routing(TOKEN, 2), x().detach()
    given.weight.requires_grad_(False)

    def total(A: Tensor, B: Tensor) -> Tensor:
        site.bind(A.index_select(0, own.rows).flatten(), (B * own.scale).flatten())
        return SegmentMix(given).add(y(), inputs, site)

    assert torch.autograd.gradcheck(total, (own.A, own.B), fast_mode=True, atol=1e-6)


def test_training_is_that_of_the_dense_sum_and_a_shared_matrix_stays_one():
    factors, site, made = trainable()
    dense, given, goal = Dense(made), routing(TOKEN, 3), y()
    optimizers = [
        torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1) for p in (list(factors.sites[0].parameters()), dense.leaves())
    ]
    for _ in range(6):
        factors.bind()
        losses = [
            SegmentMix(given).add(goal, x(), site).square().mean(),
            dense.add(goal, x(), given, before=False).square().mean(),
        ]
        for optimizer, loss in zip(optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    trained = factors.blocks()
    for number, scale in dense.scale.items():
        found = trained[number].factors["site"]
        assert found.scale == scale
        assert torch.allclose(found.A, dense.A[number].detach(), atol=1e-8)
        assert torch.allclose(found.B, dense.B[number].detach(), atol=1e-8)
    one, other = (trained[number].factors["site"].A for number in TIED)
    assert one is other and not torch.equal(one, made[1].factors["site"].A.double())


def test_untrained_blocks_are_the_blocks_that_were_given_and_share_what_those_share():
    made = blocks()
    factors = TrainableFactors(ExpertBank(made), made)
    for block, given in zip(factors.blocks(), made, strict=True):
        assert block.card == given.card and block.factors.keys() == given.factors.keys()
        for site, own in block.factors.items():
            assert torch.equal(own.A, given.factors[site].A) and torch.equal(own.B, given.factors[site].B)
            assert own.scale == given.factors[site].scale
    shapes = {name: tuple(p.shape) for name, p in factors.named_parameters()}
    rows = sum(1 + number % 4 for number in range(EXPERTS) if number != 4)
    assert shapes["sites.0.A"] == (rows - 2, IN) and shapes["sites.0.B"] == (rows, OUT)


def test_a_bank_computes_with_what_it_was_bound_to_last():
    factors, site, made = trainable()
    given = Routing(torch.full((BATCH, 1, 1), 2), torch.ones(BATCH, 1, 1).double(), EXPERTS)
    for factor in (1.0, 3.0):
        with torch.no_grad():
            factors.sites[0].B.copy_(factor * torch.cat([b.factors["site"].B.T for b in made if "site" in b.factors]))
            factors.bind()
            found = SequenceMix(given, "after").add(y(), x(), site)
        expected = y() + factor * (x() @ made[2].factors["site"].delta().double().T)
        assert torch.allclose(found, expected, atol=1e-5)
