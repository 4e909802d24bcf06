"""Similarity and subspace overlap: laws, a case by hand, dense references, and the floor by simulation."""

from dataclasses import replace

import pytest
import scipy.linalg
import torch

from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.errors import IncompatibleBlock
from pmemx.library.similarity import similarity
from pmemx.library.subspace import Overlap, input_overlap, output_overlap

WIDTHS = {"a": (24, 16), "b": (16, 40), "c": (10, 10)}


def block(name: str, **factors: LoraFactors) -> CapabilityBlock:
    return CapabilityBlock(BlockCard(name, "d", "base"), factors)


def expert(number: int, dtype: torch.dtype = torch.float32) -> CapabilityBlock:
    """Its own rank, scale and sites; some scales are negative."""
    generator = torch.Generator().manual_seed(number)
    rank, factors = 1 + number % 4, {}
    for site, (width_in, width_out) in WIDTHS.items():
        if not (site == "b" and number % 3 == 0):
            A = torch.randn(rank, width_in, generator=generator, dtype=dtype)
            B = torch.randn(width_out, rank, generator=generator, dtype=dtype)
            factors[site] = LoraFactors(A, B, (1 + number) / rank * (-1) ** number)
    return block(f"e{number}", **factors)


EXPERTS = [expert(number) for number in range(8)]


def dense(block: CapabilityBlock, site: str) -> torch.Tensor:
    update = block.factors[site]
    return update.scale * update.B.double() @ update.A.double()


def flat(block: CapabilityBlock, sites=tuple(WIDTHS)) -> torch.Tensor:
    none = {site: torch.zeros(out, into, dtype=torch.float64) for site, (into, out) in WIDTHS.items()}
    return torch.cat([(dense(block, s) if s in block.factors else none[s]).flatten() for s in sites])


def test_similarity_is_that_of_the_dense_updates():
    found = similarity(EXPERTS)
    for one, first in enumerate(EXPERTS):
        for other, second in enumerate(EXPERTS):
            expected = torch.cosine_similarity(flat(first), flat(second), dim=0)
            assert found.overall[one, other] == pytest.approx(float(expected), abs=1e-12)
            for site in WIDTHS:
                if site in first.factors and site in second.factors:
                    expected = torch.cosine_similarity(flat(first, (site,)), flat(second, (site,)), dim=0)
                    assert found.by_site[site][one, other] == pytest.approx(float(expected), abs=1e-12)
                else:
                    assert found.by_site[site][one, other].isnan()


def test_similarity_is_1_with_itself_symmetric_and_blind_to_positive_scale_and_to_the_split_into_factors():
    law = EXPERTS[2]
    R = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    split = {
        site: LoraFactors(R @ f.A.double(), f.B.double() @ R.inverse(), 7 * f.scale) for site, f in law.factors.items()
    }
    found = similarity([*EXPERTS, block("split", **split)]).overall
    assert torch.allclose(found.diagonal(), torch.ones(9, dtype=torch.float64), atol=1e-12)
    assert torch.equal(found, found.T)
    assert torch.allclose(found[8], found[2], atol=1e-6)


def test_similarity_by_hand():
    # Updates (1 0; 0 0), (1 1; 0 0), and the first one's negative.
    one = LoraFactors(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0], [0.0]]), 1.0)
    two = LoraFactors(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0], [0.0]]), 3.0)
    found = similarity([block("x", a=one), block("y", a=two), block("z", a=replace(one, scale=-0.5))])
    root = 0.5**0.5
    expected = torch.tensor([[1, root, -1], [root, 1, -root], [-1, -root, 1]], dtype=torch.float64)
    assert found.names == ("x", "y", "z")
    assert torch.allclose(found.overall, expected, atol=1e-12)


def test_an_update_of_zero_has_no_direction_and_no_subspace():
    zero = LoraFactors(torch.randn(2, 24), torch.zeros(16, 2), 1.0)
    blocks = [EXPERTS[0], block("zero", a=zero)]
    for overall in (
        similarity(blocks).overall,
        input_overlap(blocks).value.overall,
        output_overlap(blocks).floor.overall,
    ):
        assert not overall[0, 0].isnan() and overall[1].isnan().all() and overall[:, 1].isnan().all()


def test_the_order_of_blocks_is_that_of_the_names():
    one, other = similarity(EXPERTS), similarity(EXPERTS[::-1])
    assert one.names == other.names[::-1]
    assert torch.allclose(one.overall, other.overall.flip(0, 1), atol=1e-14)


@pytest.mark.parametrize(("measure", "side"), [(input_overlap, "input"), (output_overlap, "output")])
class TestOverlap:
    def test_it_is_that_of_the_dense_decompositions(self, measure, side):
        found = measure(EXPERTS)

        def basis(block: CapabilityBlock, site: str) -> torch.Tensor:
            U, _, Vh = scipy.linalg.svd(dense(block, site).numpy())
            rank = block.factors[site].rank
            return torch.from_numpy(Vh[:rank] if side == "input" else U[:, :rank].T)

        for one, first in enumerate(EXPERTS):
            for other, second in enumerate(EXPERTS):
                values, floors = [], []
                for site in WIDTHS:
                    if site in first.factors and site in second.factors:
                        V, Z = basis(first, site), basis(second, site)
                        values.append(float((V @ Z.T).square().sum()) / min(len(V), len(Z)))
                        floors.append(max(len(V), len(Z)) / V.shape[1])
                        assert found.value.by_site[site][one, other] == pytest.approx(values[-1], abs=1e-10)
                        assert found.floor.by_site[site][one, other] == pytest.approx(floors[-1], abs=1e-12)
                    else:
                        assert found.value.by_site[site][one, other].isnan()
                assert found.value.overall[one, other] == pytest.approx(sum(values) / len(values), abs=1e-10)
                assert found.floor.overall[one, other] == pytest.approx(sum(floors) / len(floors), abs=1e-12)

    def test_it_is_1_with_itself_symmetric_and_in_0_to_1(self, measure, side):
        value = measure(EXPERTS).value.overall
        assert torch.allclose(value.diagonal(), torch.ones(8, dtype=torch.float64), atol=1e-12)
        assert torch.equal(value, value.T) and value.min() > 0 and value.max() <= 1

    def test_a_part_of_a_subspace_lies_in_it_and_an_orthogonal_one_outside(self, measure, side):
        Q = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0)))[0]

        def reads(name: str, rows: list[int]) -> CapabilityBlock:
            rank = len(rows)
            return block(name, a=LoraFactors(Q[rows] * torch.arange(1, rank + 1)[:, None], Q[:, rows], 1.0))

        value = measure([reads("wide", [0, 1, 2, 3]), reads("part", [1, 3]), reads("off", [4, 5, 6])]).value.overall
        assert value[0, 1] == pytest.approx(1.0, abs=1e-6)
        assert float(value[0, 2]) == pytest.approx(0.0, abs=1e-6)

    def test_rows_of_zeros_and_repeated_rows_are_no_directions(self, measure, side):
        update = EXPERTS[1].factors["a"]
        A = torch.cat([update.A, update.A, torch.zeros(2, 24)])
        B = torch.cat([update.B, update.B, torch.zeros(16, 2)], dim=1)
        found = measure([block("plain", a=update), block("padded", a=LoraFactors(A, B, 1.0)), EXPERTS[3]])
        assert found.value.overall[0, 1] == pytest.approx(1.0, abs=1e-12)
        assert torch.equal(found.floor.overall[0], found.floor.overall[1])

    def test_random_subspaces_overlap_as_much_as_the_floor_says(self, measure, side):
        """300 independent pairs of ranks 2 and 5 in 20 dimensions; the mean has a standard error of about 0.006."""
        generator = torch.Generator().manual_seed(0)
        total = floor = 0.0
        for _ in range(300):
            pair = [
                block(
                    f"r{rank}",
                    a=LoraFactors(
                        torch.randn(rank, 20, generator=generator), torch.randn(20, rank, generator=generator), 1.0
                    ),
                )
                for rank in (2, 5)
            ]
            found: Overlap = measure(pair)
            total += float(found.value.overall[0, 1]) / 300
            floor = float(found.floor.overall[0, 1])
        assert floor == 5 / 20
        assert total == pytest.approx(floor, abs=0.02)

    def test_half_precision_factors_are_compared_as_the_numbers_they_are(self, measure, side):
        half = [expert(number, torch.bfloat16) for number in range(3)]
        wide = [
            block(b.card.name, **{s: LoraFactors(f.A.double(), f.B.double(), f.scale) for s, f in b.factors.items()})
            for b in half
        ]
        assert torch.equal(measure(half).value.overall, measure(wide).value.overall)


def test_inputs_and_outputs_are_told_apart():
    A, B = torch.eye(1, 6), torch.eye(6)[:, [2]]
    one, other = LoraFactors(A, B, 1.0), LoraFactors(A, torch.eye(6)[:, [3]], 1.0)
    blocks = [block("x", a=one), block("y", a=other)]
    assert input_overlap(blocks).value.overall[0, 1] == 1.0
    assert output_overlap(blocks).value.overall[0, 1] == 0.0


@pytest.mark.parametrize("measure", [similarity, input_overlap, output_overlap])
def test_what_is_no_library_is_refused(measure):
    with pytest.raises(IncompatibleBlock, match="at least one block"):
        measure([])
    with pytest.raises(IncompatibleBlock, match="got 'e1' twice"):
        measure([EXPERTS[1], EXPERTS[1]])
    other = CapabilityBlock(BlockCard("x", "d", "elsewhere"), EXPERTS[0].factors)
    with pytest.raises(IncompatibleBlock, match="different bases share no space"):
        measure([EXPERTS[0], other])


def test_no_dense_matrix_is_built():
    # 40,000 by 40,000 would be 12.8 GB in float64.
    generator = torch.Generator().manual_seed(0)
    blocks = [
        block(
            n,
            a=LoraFactors(
                torch.randn(2, 40_000, generator=generator), torch.randn(40_000, 2, generator=generator), 1.0
            ),
        )
        for n in "xyz"
    ]
    assert abs(float(similarity(blocks).overall[0, 1])) < 0.01
    assert float(input_overlap(blocks).floor.overall[0, 1]) == 2 / 40_000
