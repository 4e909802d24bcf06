"""What changed between two versions of a block, from the factors alone: no dense update is formed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pmemx.core.block import CapabilityBlock, LoraFactors
from pmemx.core.card_diff import Change, card_changes, score_changes
from pmemx.core.errors import IncompatibleBlock


@dataclass(frozen=True)
class SiteDiff:
    """One site before and after; a site that is absent has the rank None and counts as an update of zero.

    norms: Frobenius norms of the updates scale * B @ A. distance: Frobenius norm of their difference, exactly 0 where the
    factors are equal. cosine: between the updates as vectors, None where one is zero.
    angles: between the column spaces (what the updates write), angles_in: between the row spaces (what they read); radians
    in [0, pi/2], ascending, as many as the smaller numerical rank.
    """

    site: str
    ranks: tuple[int | None, int | None]
    norms: tuple[float, float]
    distance: float
    cosine: float | None
    angles: tuple[float, ...]
    angles_in: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON types."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class BlockDiff:
    """card: the fields that differ, by path. sites: those of either block. scores: the metrics that differ, by name."""

    card: Mapping[str, Change]
    sites: tuple[SiteDiff, ...]
    scores: Mapping[str, Change]

    def to_json(self) -> dict[str, Any]:
        """JSON types without NaN or infinity; a score also tells its delta."""
        return {
            "card": {path: change.to_json() for path, change in self.card.items()},
            "sites": [site.to_json() for site in self.sites],
            "scores": {name: change.to_json() | {"delta": change.delta} for name, change in self.scores.items()},
        }


def diff(before: CapabilityBlock, after: CapabilityBlock) -> BlockDiff:
    """What changed from one version to the other; sites in the order of before, then those that are new.

    Raises IncompatibleBlock when a site has another width in either: the two were made for different base models.
    """
    sites = dict.fromkeys([*before.factors, *after.factors])
    return BlockDiff(
        card_changes(before.card, after.card),
        tuple(_site_diff(site, before.factors.get(site), after.factors.get(site)) for site in sites),
        score_changes(before.card, after.card),
    )


def _site_diff(site: str, before: LoraFactors | None, after: LoraFactors | None) -> SiteDiff:
    present = [update for update in (before, after) if update is not None]
    widths = [(update.B.shape[0], update.A.shape[1]) for update in present]
    if len(set(widths)) > 1:
        raise IncompatibleBlock(
            f"site {site!r} is {widths[0]} wide (out, in) before and {widths[1]} after; "
            f"compare blocks of one base model"
        )
    rank = max(update.rank for update in present)
    (left_before, right_before), (left_after, right_after) = (
        _padded(update, rank, *widths[0]) for update in (before, after)
    )
    left_before, left_after, left_step = _in_common_basis(left_before, left_after)
    right_before, right_after, right_step = _in_common_basis(right_before, right_after)
    # dB A' + B dA keeps the smallest step, since what is equal cancels in the factors; B' A' - B A minds no change of basis.
    in_factors = torch.cat([left_step, left_before], dim=1), torch.cat([right_after, right_step], dim=1)
    in_updates = torch.cat([left_after, -left_before], dim=1), torch.cat([right_after, right_before], dim=1)
    left, right = min(in_factors, in_updates, key=lambda factors: _size_of_terms(*factors))
    one = _decomposed(left_before, right_before, max(widths[0]))
    other = _decomposed(left_after, right_after, max(widths[0]))
    return SiteDiff(
        site,
        (None if before is None else before.rank, None if after is None else after.rank),
        (one.norm, other.norm),
        math.hypot(*(left @ right.T).flatten().tolist()),
        _cosine(one, other),
        _principal_angles(one.columns, other.columns),
        _principal_angles(one.rows, other.rows),
    )


def _padded(
    update: LoraFactors | None, rank: int, width_out: int, width_in: int
) -> tuple[Float[Tensor, "{width_out} {rank}"], Float[Tensor, "{width_in} {rank}"]]:
    """scale * B and A transposed, in float64 on the CPU, with columns of zero up to the rank."""
    if update is None:
        return torch.zeros(width_out, rank, dtype=torch.double), torch.zeros(width_in, rank, dtype=torch.double)
    left, right = update.scale * update.B.detach().to("cpu", torch.double), update.A.detach().to("cpu", torch.double).T
    missing = (0, rank - update.rank)
    return F.pad(left, missing), F.pad(right, missing)


def _in_common_basis(
    before: Float[Tensor, "width rank"], after: Float[Tensor, "width rank"]
) -> tuple[Float[Tensor, "basis rank"], Float[Tensor, "basis rank"], Float[Tensor, "basis rank"]]:
    """before, after and after - before in one orthonormal basis, each column to the precision of its own length."""
    columns = torch.cat([before, after, after - before], dim=1)
    coordinates = torch.linalg.qr(columns, mode="r").R
    one, other, step = coordinates.tensor_split(3, dim=1)
    return one, other, step


@dataclass(frozen=True, eq=False)
class _Decomposed:
    """The SVD of an update in the common bases, without what rounding can explain."""

    columns: Float[Tensor, "basis_out direction"]
    values: Float[Tensor, " direction"]
    rows: Float[Tensor, "basis_in direction"]

    @property
    def norm(self) -> float:
        return math.hypot(*self.values.tolist())


def _decomposed(
    left: Float[Tensor, "basis_out rank"], right: Float[Tensor, "basis_in rank"], width: int
) -> _Decomposed:
    U, S, Vh = torch.linalg.svd(left @ right.T, full_matrices=False)
    real = width * torch.finfo(S.dtype).eps * _size_of_terms(left, right) < S
    return _Decomposed(U[:, real], S[real], Vh[real].T)


def _size_of_terms(left: Float[Tensor, "basis_out rank"], right: Float[Tensor, "basis_in rank"]) -> float:
    """Summed norms of the outer products that add up to left @ right.T: times eps, what rounding does to the sum."""
    return float(left.norm(dim=0) @ right.norm(dim=0))


def _cosine(one: _Decomposed, other: _Decomposed) -> float | None:
    if not (one.norm and other.norm):
        return None
    overlap = (one.columns.T @ other.columns) * (one.rows.T @ other.rows)
    cosine = float((one.values / one.norm) @ overlap @ (other.values / other.norm))
    return max(-1.0, min(1.0, cosine))


def _principal_angles(one: Float[Tensor, "basis first"], other: Float[Tensor, "basis second"]) -> tuple[float, ...]:
    """Between the spans of two orthonormal bases, ascending, as many as the smaller has directions.

    Cosines tell angles near a right one and sines those near zero (Knyazev and Argentati 2002, Björck and Golub 1973);
    the arc tangent of both tells all of them. scipy 1.17 has 0 for 1e-9 where another angle is beyond pi/4.
    """
    small, large = sorted((one, other), key=lambda basis: basis.shape[1])
    shared = large.T @ small
    cosines = torch.linalg.svdvals(shared)
    sines = torch.linalg.svdvals(small - large @ shared)[: len(cosines)].flip(0)
    return tuple(torch.atan2(sines, cosines).tolist())
