"""The weighted sum of updates, exact by rank stacking (task arithmetic, arXiv:2212.04089; "cat" and "svd" in PEFT)."""

from dataclasses import dataclass, replace

import torch

from pmemx.core.low_rank import Cut, Rank, check_rank, stacked, thin
from pmemx.core.merge import Experts, Merge


@dataclass(frozen=True, kw_only=True)
class Linear(Merge):
    """scaling * sum_e w_e dW_e. Nothing dense is built; nothing is lost at rank "sum" (stacked factors) and 1.0."""

    scaling: float = 1.0
    rank: Rank = "sum"

    def __post_init__(self) -> None:
        check_rank(self.rank)

    def merged_sites(self, experts: Experts, generator: torch.Generator) -> dict[str, Cut]:
        """See Merge.merged_sites."""
        cuts = {}
        for site in experts.sites:
            _, updates, weights = zip(*experts.at(site), strict=True)
            cut = thin(stacked(updates, weights), experts.limit(self.rank, site))
            cuts[site] = replace(cut, factors=replace(cut.factors, scale=self.scaling))
        return cuts
