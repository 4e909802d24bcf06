"""Every way of computing the routed product gives the sum of the experts' updates, and its gradients."""

import pytest
import torch

from pmemx.core.bank import ExpertBank, SiteFactors
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.mix import DenseMix, HeadedMix, NoMix, PaddedMix, SegmentMix, SequenceMix, plan
from pmemx.core.routing import Routing

BATCH, TOKEN, IN, OUT, EXPERTS = 3, 5, 16, 24, 9


def blocks(dtype: torch.dtype) -> list[CapabilityBlock]:
    """Nine experts of ranks 1 to 4, one of which leaves the site out."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(EXPERTS):
        rank = 1 + number % 4
        factors = {
            site: LoraFactors(
                torch.randn(rank, IN, generator=generator, dtype=dtype),
                torch.randn(OUT, rank, generator=generator, dtype=dtype),
                0.5 + number / 8,
            )
            for site in (("other",) if number == 4 else ("site", "other"))
        }
        made.append(CapabilityBlock(BlockCard(name=f"e{number}", domain="d", base=""), factors))
    return made


EXPERT_BLOCKS = blocks(torch.float64)
BANK = ExpertBank(EXPERT_BLOCKS)
SITE: SiteFactors = dict(BANK.items())["site"]
DELTAS = torch.stack(
    [b.factors["site"].delta() if "site" in b.factors else torch.zeros(OUT, IN).double() for b in EXPERT_BLOCKS]
)


def routing(tokens: int, chosen: int, *, rows: int = BATCH, grad: bool = False) -> Routing:
    """Random distinct experts with random weights, some of them zero."""
    generator = torch.Generator().manual_seed(chosen)
    index = torch.rand(rows, tokens, EXPERTS, generator=generator).argsort(dim=-1)[..., :chosen]
    weight = torch.rand(rows, tokens, chosen, generator=generator).double()
    weight[0, 0] = 0
    return Routing(index, weight.requires_grad_(grad), EXPERTS)


def x(grad: bool = False) -> torch.Tensor:
    return torch.randn(BATCH, TOKEN, IN, generator=torch.Generator().manual_seed(1)).double().requires_grad_(grad)


def y() -> torch.Tensor:
    return torch.randn(BATCH, TOKEN, OUT, generator=torch.Generator().manual_seed(2)).double()


def naive(x: torch.Tensor, routing: Routing) -> torch.Tensor:
    weight = routing.dense().expand(BATCH, TOKEN, EXPERTS)
    return y() + torch.einsum("bte,eoi,bti->bto", weight, DELTAS, x)


CASES = {
    "dense-token": (lambda r: DenseMix(r, "after"), TOKEN, 4),
    "dense-sequence": (lambda r: DenseMix(r, "after"), 1, EXPERTS),
    "sequence-1": (lambda r: SequenceMix(r, "after"), 1, 1),
    "sequence-3": (lambda r: SequenceMix(r, "after"), 1, 3),
    "segments-2": (SegmentMix, TOKEN, 2),
    "segments-5": (SegmentMix, TOKEN, 5),
    "padded-2": (PaddedMix, TOKEN, 2),
    "padded-5": (PaddedMix, TOKEN, 5),
}


@pytest.mark.parametrize("case", CASES)
class TestEveryStrategy:
    def test_adds_the_weighted_updates(self, case):
        make, tokens, chosen = CASES[case]
        given = routing(tokens, chosen)
        with torch.no_grad():
            assert torch.allclose(make(given).add(y(), x(), SITE), naive(x(), given), atol=1e-12)

    def test_adds_them_in_place_where_no_gradient_is_recorded(self, case):
        make, tokens, chosen = CASES[case]
        out = y()
        with torch.no_grad():
            assert make(routing(tokens, chosen)).add(out, x(), SITE).data_ptr() == out.data_ptr()

    def test_gives_the_gradients_of_the_plain_sum(self, case):
        make, tokens, chosen = CASES[case]
        seen = []
        for compute in (lambda x, r: make(r).add(y(), x, SITE), naive):
            inputs, given = x(grad=True), routing(tokens, chosen, grad=True)
            compute(inputs, given).square().sum().backward()
            seen.append((inputs.grad, given.weight.grad))
        # An expert of weight zero is left out by the sparse ways, so that its weight has no gradient there.
        mask = torch.ones_like(seen[0][1])
        if not case.startswith(("dense", "sequence")):
            mask[0, 0] = 0
        assert torch.allclose(seen[0][0], seen[1][0], atol=1e-10)
        assert torch.allclose(seen[0][1] * mask, seen[1][1] * mask, atol=1e-10)

    def test_two_sites_of_one_plan_do_not_disturb_each_other(self, case):
        make, tokens, chosen = CASES[case]
        given = routing(tokens, chosen)
        shared = make(given)
        other = dict(BANK.items())["other"]
        with torch.no_grad():
            for site in (SITE, other, SITE):
                alone = make(given).add(y(), x(), site)
                assert torch.equal(shared.add(y(), x(), site), alone)


def padded(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A and scaled B of an expert, filled up with zeros to rank 4."""
    A, B = torch.zeros(4, IN).double(), torch.zeros(OUT, 4).double()
    if (factors := EXPERT_BLOCKS[number].factors.get("site")) is not None:
        A[: factors.rank], B[:, : factors.rank] = factors.A, factors.B * factors.scale
    return A, B


@pytest.mark.parametrize("case", ["dense-token", "dense-sequence", "sequence-3"])
def test_mixing_before_is_one_expert_of_weighted_factors(case):
    _, tokens, chosen = CASES[case]
    given = routing(tokens, chosen)
    make = SequenceMix if case.startswith("sequence") else DenseMix
    A, B = (torch.stack(parts) for parts in zip(*(padded(number) for number in range(EXPERTS)), strict=True))
    weight = given.dense().expand(BATCH, TOKEN, EXPERTS)
    merged_A, merged_B = torch.einsum("bte,eri->btri", weight, A), torch.einsum("bte,eor->btor", weight, B)
    expected = y() + torch.einsum("btor,btri,bti->bto", merged_B, merged_A, x())
    with torch.no_grad():
        found = make(given, "before").add(y(), x(), SITE)
    assert torch.allclose(found, expected, atol=1e-12)
    assert (found - naive(x(), given)).abs().max() > 1e-3


class TestHeads:
    """Four heads: pieces of 4 inputs and 6 outputs."""

    def weights(self, tokens: int, heads: int = 4, grad: bool = False) -> torch.Tensor:
        generator = torch.Generator().manual_seed(heads)
        return torch.randn(BATCH, tokens, EXPERTS, heads, generator=generator).double().requires_grad_(grad)

    def naive(self, x: torch.Tensor, weights: torch.Tensor, mixing: str) -> torch.Tensor:
        A, B = (torch.stack(parts) for parts in zip(*(padded(number) for number in range(EXPERTS)), strict=True))
        read = weights.repeat_interleave(IN // weights.shape[3], dim=3).expand(BATCH, TOKEN, EXPERTS, IN)
        put = weights.repeat_interleave(OUT // weights.shape[3], dim=3).expand(BATCH, TOKEN, EXPERTS, OUT)
        if mixing == "after":
            return y() + torch.einsum("bteo,eoi,bti->bto", put, DELTAS, x)
        merged = torch.einsum("bteo,eor->btor", put, B), torch.einsum("btei,eri->btri", read, A)
        return y() + torch.einsum("btor,btri,bti->bto", *merged, x)

    @pytest.mark.parametrize("mixing", ["before", "after"])
    @pytest.mark.parametrize("tokens", [1, TOKEN])
    def test_weigh_pieces_of_the_factors_and_give_the_gradients_of_the_plain_sum(self, mixing, tokens):
        seen = []
        for compute in (lambda x, w: HeadedMix(w, mixing).add(y(), x, SITE), lambda x, w: self.naive(x, w, mixing)):
            inputs, weights = x(grad=True), self.weights(tokens, grad=True)
            out = compute(inputs, weights)
            out.square().sum().backward()
            seen.append((out, inputs.grad, weights.grad))
        for ours, expected in zip(*seen, strict=True):
            assert (ours - expected).abs().max() / expected.abs().max() < 1e-12

    @pytest.mark.parametrize("mixing", ["before", "after"])
    def test_one_head_is_the_mix_without_heads(self, mixing):
        weights = self.weights(TOKEN, heads=1)
        with torch.no_grad():
            ours = HeadedMix(weights, mixing).add(y(), x(), SITE)
            expected = DenseMix(Routing.of_weights(weights[..., 0]), mixing).add(y(), x(), SITE)
        assert torch.allclose(ours, expected, atol=1e-12)

    def test_add_in_place_where_no_gradient_is_recorded(self):
        out = y()
        with torch.no_grad():
            assert HeadedMix(self.weights(1), "before").add(out, x(), SITE).data_ptr() == out.data_ptr()

    def test_are_what_the_planner_obeys_and_traces_see_their_mean(self):
        heads = self.weights(1)
        given = Routing.of_heads([Routing.of_weights(head) for head in heads.unbind(dim=3)])
        assert torch.equal(given.heads, heads) and torch.allclose(given.dense(), heads.mean(dim=3))
        assert type(plan(given, rows=64, dtype=torch.float64)) is HeadedMix
        swapped = given.rows(torch.tensor([1, 0, 2]))
        assert torch.equal(swapped.heads, heads[[1, 0, 2]]) and not swapped.equals(given)
        assert swapped.rows(torch.tensor([1, 0, 2])).equals(given)


def test_with_one_expert_of_weight_one_before_and_after_are_the_same():
    given = Routing(torch.tensor([[[2]], [[7]], [[5]]]), torch.ones(3, 1, 1).double(), EXPERTS)
    with torch.no_grad():
        before, after = (SequenceMix(given, mixing).add(y(), x(), SITE) for mixing in ("before", "after"))
    assert torch.allclose(before, after, atol=1e-12)


def test_one_routing_for_all_rows_equals_the_same_routing_row_by_row():
    one = routing(1, 3, rows=1)
    one = Routing(one.index, one.weight + 0.1, EXPERTS)
    many = Routing(one.index.expand(BATCH, -1, -1), one.weight.expand(BATCH, -1, -1), EXPERTS)
    with torch.no_grad():
        assert torch.allclose(
            SequenceMix(one, "after").add(y(), x(), SITE), SequenceMix(many, "after").add(y(), x(), SITE), atol=1e-12
        )


def test_a_routing_of_nothing_leaves_the_output_alone():
    given = routing(1, 2)
    assert isinstance(plan(given, rows=64, dtype=torch.float32, weightless=True), NoMix)
    empty = Routing(given.index[..., :0], given.weight[..., :0], EXPERTS)
    out = y()
    assert plan(empty, rows=64, dtype=torch.float32).add(out, x(), SITE) is out


@pytest.mark.parametrize("make", [SegmentMix, PaddedMix])
def test_a_batch_in_which_no_token_chose_an_expert_is_left_alone(make):
    nothing = Routing(torch.zeros(BATCH, TOKEN, 2, dtype=torch.long), torch.zeros(BATCH, TOKEN, 2).double(), EXPERTS)
    with torch.no_grad():
        assert torch.equal(make(nothing).add(y(), x(), SITE), y())


@pytest.mark.parametrize(
    ("tokens", "chosen", "num_experts", "rows", "dtype", "expected"),
    [
        (1, 1, 512, 4096, torch.float32, SequenceMix),
        (1, 8, 8, 64, torch.float32, DenseMix),
        (1, 8, 9, 72, torch.float32, DenseMix),
        (1, 5, 9, 72, torch.float32, DenseMix),
        (1, 4, 8, 64, torch.float32, SequenceMix),
        (1, 1, 1, 8, torch.float32, SequenceMix),
        (256, 8, 8, 64, torch.float32, DenseMix),
        (256, 2, 8, 64, torch.float32, DenseMix),
        (256, 2, 128, 1024, torch.float32, SegmentMix),
        (256, 2, 128, 1024, torch.bfloat16, SegmentMix),
        (256, 2, 8, 64, torch.bfloat16, SegmentMix),
        (2, 2, 8, 64, torch.bfloat16, DenseMix),
    ],
)
def test_the_planner_chooses_by_rows_tokens_and_type(tokens, chosen, num_experts, rows, dtype, expected):
    given = Routing(torch.zeros(1, tokens, chosen, dtype=torch.long), torch.ones(1, tokens, chosen), num_experts)
    assert type(plan(given, rows=rows, dtype=dtype)) is expected
    if expected is not SequenceMix:
        assert type(plan(given, rows=rows, dtype=dtype, mixing="before")) is DenseMix
