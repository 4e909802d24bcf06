"""The spectrum of an update is that of the dense matrix."""

import pytest
import torch

from pmemx.core.block import LoraFactors
from pmemx.core.spectrum import right_spectrum


@pytest.mark.parametrize(("rank", "width_in", "width_out"), [(1, 7, 5), (4, 12, 20), (6, 5, 9), (6, 9, 5)])
def test_is_that_of_the_dense_update(rank, width_in, width_out):
    generator = torch.Generator().manual_seed(rank)
    factors = LoraFactors(
        torch.randn(rank, width_in, generator=generator), torch.randn(width_out, rank, generator=generator), 0.7
    )
    values, vectors = right_spectrum(factors)
    _, S, Vh = torch.linalg.svd(factors.delta())
    known = min(rank, width_in, width_out)
    assert torch.allclose(values, S[:known], rtol=1e-5)
    assert torch.allclose((vectors * Vh[:known]).sum(dim=1).abs(), torch.ones(known), atol=1e-5)


def test_has_no_directions_beyond_the_numerical_rank():
    A = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    twice = LoraFactors(torch.cat([A, A]), torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), 1.0)
    assert len(right_spectrum(twice)[0]) == 2


def test_an_update_of_zero_has_none():
    values, vectors = right_spectrum(LoraFactors(torch.randn(3, 8), torch.zeros(6, 3), 1.0))
    assert values.shape == (0,) and vectors.shape == (0, 8)


def test_half_precision_factors_give_full_precision_directions():
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(2, 8, generator=generator).bfloat16(), torch.randn(6, 2, generator=generator).bfloat16()
    exact = right_spectrum(LoraFactors(A.float(), B.float(), 1.0))
    found = right_spectrum(LoraFactors(A, B, 1.0))
    assert all(torch.equal(a, b) for a, b in zip(exact, found, strict=True))
