"""Iso-CTS: an isotropic sum whose weakest directions make room for what each expert has alone (arXiv:2502.04959)."""

from dataclasses import dataclass

import torch

from pmemx.core.block import LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.core.low_rank import Cut, Rank, Triplets, check_rank, orthonormal, stacked, triplets
from pmemx.core.merge import Experts, Merge
from pmemx.merge.iso import isotropic


@dataclass(frozen=True, kw_only=True)
class IsoCts(Merge):
    """scaling * mean(S') * U' V'^T. S' are the k largest singular values of the sum, whose directions U are common to the
    experts, and of every (I - U U^T) w_e dW_e the (n - k) / E largest; U' and V' are the orthonormal matrices nearest to
    all their directions.

    n, the paper's min(width), is the rank of the sum here (see Iso). common: k / n; k is raised or lowered until the
    experts share the rest evenly, as in the authors' code. An expert that does not adapt a site has no share there, and one
    of a smaller rank gives what it has. rank: of the sum.
    """

    common: float = 0.8
    scaling: float = 1.0
    rank: Rank = "sum"

    def __post_init__(self) -> None:
        check_rank(self.rank)
        if not 0 <= self.common <= 1:
            raise ConfigError(f"common = {self.common} is no share of directions; give one in [0, 1], 1 for Iso-C")

    def merged_sites(self, experts: Experts, generator: torch.Generator) -> dict[str, Cut]:
        """See Merge.merged_sites."""
        return {site: self._merged(experts, site) for site in experts.sites}

    def _merged(self, experts: Experts, site: str) -> Cut:
        _, updates, weights = zip(*experts.at(site), strict=True)
        total = triplets(stacked(updates, weights), experts.limit(self.rank, site))
        own = [
            (update, found)
            for update in (stacked([one], [weight]) for one, weight in zip(updates, weights, strict=True))
            if len((found := triplets(update)).S)
        ]
        k, each = self._shares(len(total.S), len(own))
        U = total.U[:, :k]
        parts = [_outside(update, found, U, each) for update, found in own] if each else []
        S = torch.cat([total.S[:k], *(part.S for part in parts)])
        U, Vh = torch.cat([U, *(part.U for part in parts)], dim=1), torch.cat([total.Vh[:k], *(p.Vh for p in parts)])
        dtype = updates[0].A.dtype
        if len(S):
            U, Vh = orthonormal(U, dtype), orthonormal(Vh.T, dtype).T
        return Cut(isotropic(U, S, Vh, self.scaling, dtype), total.lost, total.total)

    def _shares(self, directions: int, experts: int) -> tuple[int, int]:
        """How many directions are common, and how many belong to each expert."""
        if not experts:
            return directions, 0
        each = min(round((directions - int(self.common * directions)) / experts), directions // experts)
        return directions - each * experts, each


def _outside(update: LoraFactors, found: Triplets, U: torch.Tensor, directions: int) -> Triplets:
    """The strongest directions of an update outside the span of U; what rounding leaves inside is none."""
    B = update.scale * update.B.double()
    return triplets(LoraFactors(update.A.double(), B - U @ (U.T @ B), 1.0), directions, noise=found.noise)
