"""What changed between two blocks is what the dense updates say, in any basis, and to the last angle."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.block_diff import BlockDiff, SiteDiff, diff
from pmemx.core.card_diff import Change
from pmemx.core.errors import IncompatibleBlock
from tests.rounding import rounding

WIDTH_IN, WIDTH_OUT = 30, 20


def update(rank: int, seed: int, *, scale: float = 1.5, dtype: torch.dtype = torch.float32) -> LoraFactors:
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(rank, WIDTH_IN, generator=generator, dtype=torch.float64)
    B = torch.randn(WIDTH_OUT, rank, generator=generator, dtype=torch.float64)
    return LoraFactors((A * 0.3).to(dtype), (B * 0.3).to(dtype), scale)


def block(card: BlockCard | None = None, **factors: LoraFactors) -> CapabilityBlock:
    return CapabilityBlock(card or BlockCard("law", "law", "ba5e"), factors)


def of(before: LoraFactors, after: LoraFactors) -> SiteDiff:
    return diff(block(up=before), block(up=after)).sites[0]


def axes(width: int, *directions: int) -> torch.Tensor:
    return torch.eye(width, dtype=torch.float64)[:, list(directions)]


def assert_close(one: SiteDiff, other: SiteDiff, tolerance: float = 1e-10) -> None:
    """Equal but for rounding, relative to the norms."""
    size = max(*one.norms, 1e-300)
    assert one.norms == pytest.approx(other.norms, rel=tolerance)
    assert one.distance == pytest.approx(other.distance, abs=tolerance * size)
    assert one.cosine == pytest.approx(other.cosine, abs=tolerance)
    assert one.angles == pytest.approx(other.angles, abs=tolerance)
    assert one.angles_in == pytest.approx(other.angles_in, abs=tolerance)


@given(rank=st.integers(1, 25), seed=st.integers(0, 2**31), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
@settings(deadline=None, max_examples=40)
def test_a_block_differs_from_itself_in_nothing(rank, seed, dtype):
    one = block(up=update(rank, seed, dtype=dtype))
    found = diff(one, one)
    (site,) = found.sites
    assert found.card == found.scores == {}
    assert site.distance == 0.0 and site.norms[0] == pytest.approx(site.norms[1], rel=1e-14)
    assert site.cosine == pytest.approx(1.0, abs=1e-14)
    assert len(site.angles) == len(site.angles_in) == min(rank, WIDTH_OUT)
    assert max(site.angles + site.angles_in) < 1e-13


@given(ranks=st.tuples(st.integers(1, 25), st.integers(1, 25)), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=40)
def test_the_way_back_is_as_far(ranks, seed):
    one, other = update(ranks[0], seed), update(ranks[1], seed + 1, scale=-0.5)
    forth, back = of(one, other), of(other, one)
    assert back.ranks == forth.ranks[::-1] == ranks[::-1]
    turned = replace(back, ranks=forth.ranks, norms=(back.norms[1], back.norms[0]))
    assert_close(forth, turned)


@given(rank=st.integers(1, 8), seed=st.integers(0, 2**31), scale=st.sampled_from([1e-6, -3.0, 1e6]))
@settings(deadline=None, max_examples=40)
def test_a_change_of_basis_or_of_scale_changes_nothing(rank, seed, scale):
    one, other = update(rank, seed, dtype=torch.float64), update(rank + 2, seed + 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64)).Q
    basis = rotation * torch.logspace(-6, 6, rank, dtype=torch.float64)
    rebased = LoraFactors(torch.linalg.solve(basis, one.A), one.scale / scale * one.B @ basis, scale)
    assert_close(of(one, other), of(rebased, other), 1e-9)
    same = of(one, rebased)
    assert same.distance < 1e-12 * same.norms[0] and same.cosine == pytest.approx(1.0, abs=1e-12)
    assert max(same.angles + same.angles_in) < 1e-9


def test_a_scale_alone_moves_along_the_update():
    one = update(4, 0, scale=1.0)
    site = of(one, LoraFactors(one.A, one.B, -0.5))
    assert site.distance == pytest.approx(1.5 * site.norms[0], rel=1e-14)
    assert site.norms[1] == pytest.approx(0.5 * site.norms[0], rel=1e-14)
    assert site.cosine == pytest.approx(-1.0, abs=1e-14) and max(site.angles + site.angles_in) < 1e-13


def test_orthogonal_updates_are_at_right_angles():
    one = LoraFactors(axes(6, 0, 1).T, axes(8, 0, 1), 1.0)
    other = LoraFactors(axes(6, 2, 3, 4).T, axes(8, 1, 5, 6), 2.0)
    site = of(one, other)
    assert site.angles == (0.0, math.pi / 2) and site.angles_in == (math.pi / 2, math.pi / 2)
    assert site.cosine == 0.0 and site.norms == pytest.approx((math.sqrt(2), math.sqrt(12)))
    assert site.distance == pytest.approx(math.sqrt(14))


@pytest.mark.parametrize(
    "theta", [math.pi / 2, math.pi / 2 - 1e-9, 1.5, 1.0, math.pi / 4, 0.1, 1e-4, 1e-7, 1e-9, 1e-12]
)
def test_a_rotation_by_theta_gives_the_angle_theta(theta):
    """The second direction of the update is at a right angle all the while, the first turns by theta."""
    turned = axes(8, 0, 3)
    turned[:, 0] = math.cos(theta) * axes(8, 0)[:, 0] + math.sin(theta) * axes(8, 1)[:, 0]
    site = of(LoraFactors(axes(6, 0, 1).T, axes(8, 0, 2), 3.0), LoraFactors(axes(6, 0, 1).T, turned, 3.0))
    # Rounding of 1e-16 in a direction is 1e-16 in the angle, whatever the angle.
    assert site.angles == pytest.approx((theta, math.pi / 2), rel=0, abs=2e-15)
    assert site.angles_in == pytest.approx((0.0, 0.0), abs=2e-15)
    assert site.distance == pytest.approx(3 * math.sqrt((2 * math.sin(theta / 2)) ** 2 + 2), rel=1e-14)


@pytest.mark.parametrize("theta", [1e-9, 1.0, math.pi / 2 - 1e-9])
def test_angles_are_exact_in_any_position(theta):
    """The same plane, turned in space by a random rotation."""
    generator = torch.Generator().manual_seed(0)
    space = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64)).Q
    turned = torch.stack([math.cos(theta) * space[0] + math.sin(theta) * space[1], space[2]])
    columns = torch.randn(WIDTH_OUT, 2, generator=generator, dtype=torch.float64)
    site = of(LoraFactors(space[[0, 3]], columns, 1.0), LoraFactors(turned, columns, 1.0))
    assert site.angles_in == pytest.approx((theta, math.pi / 2), rel=0, abs=2e-15)


@pytest.mark.parametrize("theta", [1e-4, 1e-7, 1e-9, 1e-12])
def test_a_tiny_step_has_its_own_precision(theta):
    """Not that of the norms, whose squares would hide it."""
    turned = torch.tensor([[math.cos(theta)], [math.sin(theta)], [0.0]], dtype=torch.float64)
    site = of(LoraFactors(axes(5, 0).T, axes(3, 0), 3.0), LoraFactors(axes(5, 0).T, turned, 3.0))
    assert site.distance == pytest.approx(3 * 2 * math.sin(theta / 2), rel=1e-12)
    assert site.angles == pytest.approx((theta,), rel=1e-3, abs=0) and site.angles_in == pytest.approx(
        (0.0,), abs=1e-15
    )


def test_one_bit_of_one_entry_is_seen():
    one = update(16, 3)
    A = one.A.clone()
    A[5, 7] = torch.nextafter(A[5, 7], torch.tensor(math.inf))
    step = float(A[5, 7].double() - one.A[5, 7].double())
    site = of(one, LoraFactors(A, one.B, one.scale))
    assert site.distance == pytest.approx(one.scale * step * float(one.B[:, 5].double().norm()), rel=1e-12)


def test_a_small_factor_and_a_large_one_make_the_same_update():
    one = update(4, 0)
    site = of(one, LoraFactors(one.A * 2.0**40, one.B * 2.0**-40, one.scale))
    assert site.distance < 1e-14 * site.norms[0]


SITES = [
    # ranks, dtypes, scales; the last three are a step of training apart
    ((1, 1), (torch.float32, torch.float32), (1.0, 1.0)),
    ((4, 4), (torch.float32, torch.bfloat16), (2.0, 0.5)),
    ((8, 3), (torch.bfloat16, torch.bfloat16), (0.25, 1.0)),
    ((2, 16), (torch.bfloat16, torch.float32), (1.0, -1.0)),
    ((20, 25), (torch.float32, torch.float32), (1.0, 3.0)),
    ((4, 4), (torch.float32, torch.float32), (2.0, 2.0)),
    ((5, 5), (torch.bfloat16, torch.float32), (1.0, 1.0)),
    ((3, 3), (torch.bfloat16, torch.bfloat16), (1.0, 1.25)),
]


def angles_between(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Between the column spaces, smallest first, each from its sine and its cosine (Björck and Golub 1973).

    scipy.linalg.subspace_angles takes one of the two: beside right angles it gives 2e-8 for zero.
    """
    large, small = sorted((scipy.linalg.orth(one), scipy.linalg.orth(other)), key=lambda basis: -basis.shape[1])
    cosines = np.linalg.svd(large.T @ small, compute_uv=False)
    sines = np.linalg.svd(small - large @ (large.T @ small), compute_uv=False)
    return np.arctan2(sines[::-1], cosines)


@pytest.mark.parametrize("index", range(len(SITES)))
def test_agrees_with_the_dense_updates(index):
    """Norms and distance relative, cosine and angles absolute; directions turn with the condition of an update, 41 at most."""
    allowed = rounding(41, WIDTH_IN, torch.float64)
    ranks, dtypes, scales = SITES[index]
    before = update(ranks[0], index, scale=scales[0], dtype=dtypes[0])
    if index < 5:
        after = update(ranks[1], 100 + index, scale=scales[1], dtype=dtypes[1])
    else:
        step = update(ranks[1], 100 + index, scale=scales[1])
        after = LoraFactors(
            (before.A.float() + 0.02 * step.A).to(dtypes[1]),
            (before.B.float() + 0.02 * step.B).to(dtypes[1]),
            scales[1],
        )
    one, other = (u.scale * (u.B.double().numpy() @ u.A.double().numpy()) for u in (before, after))
    site = of(before, after)
    assert site.ranks == ranks
    assert site.norms == pytest.approx((np.linalg.norm(one), np.linalg.norm(other)), rel=allowed)
    assert site.distance == pytest.approx(np.linalg.norm(other - one), rel=allowed)
    cosine = (one * other).sum() / (np.linalg.norm(one) * np.linalg.norm(other))
    assert site.cosine == pytest.approx(cosine, abs=allowed)
    for angles, expected in (
        (site.angles, angles_between(one, other)),
        (site.angles_in, angles_between(one.T, other.T)),
    ):
        assert len(angles) == len(expected) == min(*ranks, WIDTH_OUT)
        assert angles == pytest.approx(expected, abs=allowed)


def test_directions_beyond_the_numerical_rank_have_no_angle():
    one = update(3, 0)
    twice = LoraFactors(torch.cat([one.A, 2 * one.A]), torch.cat([one.B, one.B], dim=1), one.scale)
    site = of(one, twice)
    assert site.ranks == (3, 6) and site.distance == pytest.approx(2 * site.norms[0], rel=1e-14)
    assert len(site.angles) == len(site.angles_in) == 3 and max(site.angles + site.angles_in) < 1e-13


def test_an_update_that_cancels_is_zero():
    one = update(2, 0, dtype=torch.float64)
    A, B = one.A, one.B
    nothing = LoraFactors(torch.cat([A, A * 3]), torch.cat([B * 3, -B], dim=1), 1.0)
    site = of(update(2, 1), nothing)
    assert site.norms[1] == 0.0 and site.cosine is None and site.angles == site.angles_in == ()
    assert site.distance == pytest.approx(site.norms[0], rel=1e-13)


def test_a_small_update_is_as_precise_as_a_large_one():
    small, large = update(3, 0, scale=1e-12), update(4, 1, scale=1e6)
    site, level = of(large, small), of(update(4, 1, scale=1.0), update(3, 0, scale=1.0))
    assert site.angles == pytest.approx(level.angles, abs=1e-12)
    assert site.cosine == pytest.approx(level.cosine, abs=1e-12)
    assert site.norms == pytest.approx((1e6 * level.norms[0], 1e-12 * level.norms[1]), rel=1e-12)


def test_a_site_without_an_update_is_told_from_one_of_zero():
    both, gone, new = update(2, 0), update(3, 1), update(4, 2)
    zero = LoraFactors(both.A, torch.zeros_like(both.B), 1.0)
    found = diff(block(gone=gone, up=both, zero=zero), block(new=new, zero=zero, up=zero))
    sites = {site.site: site for site in found.sites}
    assert [*sites] == ["gone", "up", "zero", "new"]
    assert {name: site.ranks for name, site in sites.items()} == {
        "gone": (3, None),
        "up": (2, 2),
        "zero": (2, 2),
        "new": (None, 4),
    }
    for name, only, at in (("gone", gone, 0), ("up", both, 0), ("new", new, 1)):
        norm = float((only.scale * only.B.double() @ only.A.double()).norm())
        assert sites[name].norms[at] == pytest.approx(norm, rel=1e-13) and sites[name].norms[1 - at] == 0.0
        assert sites[name].distance == pytest.approx(norm, rel=1e-13)
    assert sites["zero"].norms == (0.0, 0.0) and sites["zero"].distance == 0.0
    assert all(site.cosine is None and site.angles == site.angles_in == () for site in found.sites)


def test_an_update_of_rank_zero_is_zero():
    empty = LoraFactors(torch.zeros(0, WIDTH_IN), torch.zeros(WIDTH_OUT, 0), 1.0)
    assert of(empty, empty) == SiteDiff("up", (0, 0), (0.0, 0.0), 0.0, None, (), ())
    site = of(empty, update(2, 0))
    assert site.ranks == (0, 2) and site.distance == pytest.approx(site.norms[1], rel=1e-14) and site.angles == ()


def test_another_width_is_another_base_model():
    narrow = LoraFactors(torch.ones(1, 7), torch.ones(WIDTH_OUT, 1), 1.0)
    with pytest.raises(IncompatibleBlock, match=r"site 'up' is \(20, 30\) wide .* \(20, 7\) after"):
        diff(block(up=update(2, 0)), block(up=narrow))


def test_to_json_by_hand():
    before = BlockCard("law", "law", "ba5e", metrics={"exact": 0.25, "loss": math.nan})
    after = BlockCard("law", "law", "ba5e", metrics={"exact": 0.75, "loss": 1.0})
    one = LoraFactors(axes(3, 0).T, axes(2, 0), 1.0)
    found = diff(block(before, up=one), block(after, down=one))
    assert found.scores["exact"] == found.card["metrics.exact"] == Change(0.25, 0.75, "changed")
    exact = {"kind": "changed", "before": 0.25, "after": 0.75}
    loss = {"kind": "changed", "before": "nan", "after": 1.0}
    absent = {"distance": 1.0, "cosine": None, "angles": [], "angles_in": []}
    told = found.to_json()
    assert told == {
        "card": {"metrics.exact": exact, "metrics.loss": loss},
        "sites": [
            {"site": "up", "ranks": [1, None], "norms": [1.0, 0.0], **absent},
            {"site": "down", "ranks": [None, 1], "norms": [0.0, 1.0], **absent},
        ],
        "scores": {"exact": exact | {"delta": 0.5}, "loss": loss | {"delta": None}},
    }
    assert json.loads(json.dumps(told, allow_nan=False)) == told


@given(seed=st.integers(0, 2**31), ranks=st.tuples(st.integers(1, 5), st.integers(1, 5)))
@settings(deadline=None, max_examples=20)
def test_any_diff_survives_json(seed, ranks):
    found: BlockDiff = diff(
        block(up=update(ranks[0], seed)), block(up=update(ranks[1], seed + 1), down=update(1, seed))
    )
    assert json.loads(json.dumps(found.to_json(), allow_nan=False)) == found.to_json()


def test_never_forms_the_dense_update():
    """At 60,000 by 60,000 that would be 29 GB."""
    allowed = rounding(1, 60_000, torch.float64)
    wide = LoraFactors(torch.ones(2, 60_000), torch.ones(60_000, 2), 0.5)
    site = of(wide, LoraFactors(wide.A, wide.B, 1.0))
    assert site.norms == pytest.approx((60_000.0, 120_000.0), rel=allowed)
    assert site.distance == pytest.approx(60_000.0, rel=allowed) and len(site.angles) == 1
