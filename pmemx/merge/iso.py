"""Iso-C: the sum of updates with all its singular values made equal (arXiv:2502.04959)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pmemx.core.block import LoraFactors
from pmemx.core.low_rank import Cut, Rank, check_rank, factored, stacked, triplets
from pmemx.core.merge import Experts, Merge


@dataclass(frozen=True, kw_only=True)
class Iso(Merge):
    """scaling * mean(S) * U V^T of the sum U S V^T = sum_e w_e dW_e.

    The paper's sums have full rank. Those of low-rank experts have not: only the directions that the sum really has take
    part, and count in the mean. A decomposition picks the others at will, so that no two runs would agree about them.
    rank: of the sum; cut before its singular values are equal, since afterwards any cut is arbitrary.
    """

    scaling: float = 1.0
    rank: Rank = "sum"

    def __post_init__(self) -> None:
        check_rank(self.rank)

    def merged_sites(self, experts: Experts, generator: torch.Generator) -> dict[str, Cut]:
        """See Merge.merged_sites."""
        cuts = {}
        for site in experts.sites:
            _, updates, weights = zip(*experts.at(site), strict=True)
            found = triplets(stacked(updates, weights), experts.limit(self.rank, site))
            update = isotropic(found.U, found.S, found.Vh, self.scaling, updates[0].A.dtype)
            cuts[site] = Cut(update, found.lost, found.total)
        return cuts


def isotropic(
    U: Float[Tensor, "width_out direction"],
    S: Float[Tensor, " direction"],
    Vh: Float[Tensor, "direction width_in"],
    scaling: float,
    dtype: torch.dtype,
) -> LoraFactors:
    """scaling * mean(S) * U V^T; zero where there is no direction."""
    root = S.mean().sqrt() if len(S) else 0.0
    return factored(U * root, root * Vh, scaling, dtype)
