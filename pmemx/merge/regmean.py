"""RegMean: the update whose answers are nearest to every expert's on that expert's own data (arXiv:2212.09849)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pmemx.core.block import LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.core.low_rank import Cut, Rank, check_rank, thin
from pmemx.core.merge import Experts, Merge


@dataclass(frozen=True, kw_only=True)
class RegMean(Merge):
    """(sum_e w_e dW_e G_e) (sum_e w_e G_e)^-1, with G_e the second moments of what the site reads in expert e's data.

    It is the linear regression on what the experts answer, where the data of expert e count w_e times; an expert that does
    not adapt the site answers its data with zero. off_diagonal: what entries of G_e beside the diagonal are multiplied
    by, which draws each feature to the mean of the updates.

    ridge: added to the diagonal of every G_e, before and in the inverse, as a share of the mean of all diagonals. Where no
    data decide (fewer tokens than the site is wide, features that are always zero), M is the mean of the updates, and a
    single expert stays what it is. A pseudo-inverse would answer with zero there, and a ridge in the inverse alone would
    shrink every expert. With off_diagonal 1 and few tokens it must stand above the rounding of moments in float32, some
    1e-7 times the width. rank: of the result.
    """

    reads_moments: ClassVar[bool] = True

    off_diagonal: float = 0.9
    ridge: float = 1e-5
    rank: Rank = "sum"

    def __post_init__(self) -> None:
        check_rank(self.rank)
        if not 0 <= self.off_diagonal <= 1:
            raise ConfigError(f"off_diagonal = {self.off_diagonal} is no share; give one in [0, 1], 0 for a diagonal")
        if self.ridge <= 0:
            raise ConfigError(f"ridge = {self.ridge} leaves directions without data undecided; give a number above 0")

    def merged_sites(self, experts: Experts, generator: torch.Generator) -> dict[str, Cut]:
        """See Merge.merged_sites. Raises ConfigError for a weight that is not positive, which no regression can have."""
        if (least := min(experts.weights)) <= 0:
            raise ConfigError(f"data would count {least:g} times; give positive weights, or leave the expert out")
        return {site: thin(self._solved(experts, site), experts.limit(self.rank, site)) for site in experts.sites}

    def _solved(self, experts: Experts, site: str) -> LoraFactors:
        weighed = list(zip(experts.moments, experts.weights, strict=True))
        width = weighed[0][0][site].shape[0]
        trace = sum(weight * float(given[site].double().trace()) for given, weight in weighed) / sum(experts.weights)
        # A site that reads nothing but zeros is one that no data show.
        ridge = self.ridge * trace / width or 1.0
        total = torch.zeros(width, width, dtype=torch.float64)
        for given, weight in weighed:
            total += weight * self._damped(given[site], ridge)
        rows = [
            weight * update.A.double() @ self._damped(experts.moments[number][site], ridge)
            for number, update, weight in experts.at(site)
        ]
        B = torch.cat([update.scale * update.B for _, update, _ in experts.at(site)], dim=1)
        A = torch.linalg.solve(total, torch.cat(rows), left=False)
        return LoraFactors(A.to(B.dtype), B, 1.0)

    def _damped(self, moments: Float[Tensor, "width_in width_in"], ridge: float) -> Float[Tensor, "width_in width_in"]:
        diagonal = moments.diagonal().double()
        return self.off_diagonal * moments.double() + torch.diag((1 - self.off_diagonal) * diagonal + ridge)
