"""Low-rank updates without dense matrices: they add up by stacking, and a cut of their rank tells what it lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pmemx.core.block import LoraFactors
from pmemx.core.errors import ConfigError

Rank = int | float | Literal["sum", "largest"]
"""An int: that many. A float: the least that keeps this share of the squared Frobenius norm; 1.0 loses nothing.
"sum": what the parents have together at the site. "largest": what the widest parent has anywhere."""


@dataclass(frozen=True, eq=False)
class Cut:
    """Factors of an update after its rank was cut, and two squared Frobenius norms: what was lost, and what was there."""

    factors: LoraFactors
    lost: float
    total: float


@dataclass(frozen=True, eq=False)
class Triplets:
    """The singular triplets of an update that were kept, largest first, in float64.

    noise: what rounding can make of a singular value of zero. lost and total as in Cut.
    """

    U: Float[Tensor, "width_out kept"]
    S: Float[Tensor, " kept"]
    Vh: Float[Tensor, "kept width_in"]
    noise: float
    lost: float
    total: float


def check_rank(rank: Rank) -> None:
    """Raises ConfigError for a rank below 1 or a share outside (0, 1]."""
    if isinstance(rank, float) and not 0 < rank <= 1:
        raise ConfigError(f"rank {rank} is no share of the energy in (0, 1]; 0.99 keeps 99 %, and 8 keeps eight ranks")
    if isinstance(rank, int) and (isinstance(rank, bool) or rank < 1):
        raise ConfigError(f"rank {rank} keeps nothing; give at least 1, a share such as 0.99, 'sum' or 'largest'")


def stacked(updates: Sequence[LoraFactors], weights: Sequence[float]) -> LoraFactors:
    """sum_e w_e dW_e, exactly: ranks add up, scales and weights go into B."""
    A = torch.cat([update.A for update in updates])
    B = torch.cat([weight * update.scale * update.B for update, weight in zip(updates, weights, strict=True)], dim=1)
    return LoraFactors(A, B, 1.0)


def energy(update: LoraFactors) -> float:
    """Squared Frobenius norm of the delta, from two products of rank by rank."""
    A, B = update.A.double(), update.B.double()
    return update.scale**2 * float(((A @ A.T) * (B.T @ B)).sum())


def thin(update: LoraFactors, rank: int | float) -> Cut:
    """The nearest update of that rank, by two QR decompositions and the SVD of a core of rank by rank.

    An update that has no more than that is left as it is.
    """
    if isinstance(rank, int) and update.rank <= rank:
        return Cut(update, 0.0, energy(update))
    return _cut(*_decomposed(update), rank, update.A.dtype)


def triplets(update: LoraFactors, rank: int | float = 1.0, *, noise: float | None = None) -> Triplets:
    """The singular triplets of an update, at most as many as the rank leaves; none for an update of zero.

    For methods that lend a direction more than its own singular value, and would blow up what is only rounding. noise:
    singular values up to this one are left out; None stands for what rounding of the factors in their own type can make,
    which is more than that of the decomposition: a stored merge shares directions with its parents up to the former.
    """
    U, S, Vh = _decomposed(update)
    noise = _noise(S, update.A.dtype) if noise is None else noise
    kept = min(_within(S, rank), _above(noise, S))
    lost, total = float(S[kept:].square().sum()), float(S.square().sum())
    return Triplets(U[:, :kept], S[:kept], Vh[:kept], noise, lost, total)


def orthonormal(columns: Float[Tensor, "width column"], dtype: torch.dtype) -> Float[Tensor, "width column"]:
    """The nearest matrix with orthonormal columns: the polar factor.

    Columns that depend on each other, up to rounding in dtype, have no nearest one: the result spans what they span and no
    more, so that n equal columns become n of length 1 / sqrt(n). Where there are more columns than rows, the rows of the
    result are orthonormal.
    """
    basis, core = torch.linalg.qr(columns)
    U, S, Vh = torch.linalg.svd(core, full_matrices=False)
    kept = _above(_noise(S, dtype), S)
    return basis @ (U[:, :kept] @ Vh[:kept])


def factored(
    B: Float[Tensor, "width_out rank"], A: Float[Tensor, "rank width_in"], scale: float, dtype: torch.dtype
) -> LoraFactors:
    """scale B A in that type; where there is no rank left, an update of zero of rank 1, the least that can be stored."""
    if not B.shape[1]:
        B, A = B.new_zeros(B.shape[0], 1), A.new_zeros(1, A.shape[1])
    return LoraFactors(A.to(dtype), B.to(dtype), scale)


def truncate(delta: Float[Tensor, "width_out width_in"], rank: int | float) -> Cut:
    """The nearest update of that rank to a dense one."""
    U, S, Vh = torch.linalg.svd(delta.double(), full_matrices=False)
    return _cut(U, S, Vh, rank, delta.dtype)


def _cut(
    U: Float[Tensor, "width_out full"],
    S: Float[Tensor, " full"],
    Vh: Float[Tensor, "full width_in"],
    rank: int | float,
    dtype: torch.dtype,
) -> Cut:
    kept = _kept(S, max(U.shape[0], Vh.shape[1]), rank)
    root = S[:kept].sqrt()
    # Half of every singular value on either side: neither factor is small where the other is large.
    factors = LoraFactors((root[:, None] * Vh[:kept]).to(dtype), (U[:, :kept] * root).to(dtype), 1.0)
    return Cut(factors, float(S[kept:].square().sum()), float(S.square().sum()))


def numerical_rank(S: Float[Tensor, " full"], width: int) -> int:
    """The number of singular values, largest first, that rounding cannot explain; width is the longer side of the matrix.

    At least 1, since factors of rank 0 cannot be stored.
    """
    return max(1, int((S[0] * width * torch.finfo(S.dtype).eps < S).sum()))


def _kept(S: Float[Tensor, " full"], width: int, rank: int | float) -> int:
    return min(_within(S, rank), numerical_rank(S, width))


def _within(S: Float[Tensor, " full"], rank: int | float) -> int:
    if isinstance(rank, float):
        so_far = S.square().cumsum(dim=0)
        return int((so_far < rank * so_far[-1]).sum()) + 1
    return rank


def _above(noise: float, S: Float[Tensor, " full"]) -> int:
    return int((noise < S).sum())


def _noise(S: Float[Tensor, " full"], dtype: torch.dtype) -> float:
    return float(S[0]) * len(S) * torch.finfo(dtype).eps


def _decomposed(
    update: LoraFactors,
) -> tuple[Float[Tensor, "width_out full"], Float[Tensor, " full"], Float[Tensor, "full width_in"]]:
    left, lower = torch.linalg.qr(update.scale * update.B.double())
    right, upper = torch.linalg.qr(update.A.double().T)
    U, S, Vh = torch.linalg.svd(lower @ upper.T, full_matrices=False)
    return left @ U, S, Vh @ right.T
