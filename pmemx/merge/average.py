"""The weighted mean of updates: the sum, divided by the sum of the weights."""

from dataclasses import dataclass, replace

import torch

from pmemx.core.errors import ConfigError
from pmemx.core.low_rank import Cut, Rank, check_rank
from pmemx.core.merge import Experts, Merge
from pmemx.merge.linear import Linear


@dataclass(frozen=True, kw_only=True)
class Average(Merge):
    """sum_e w_e dW_e / sum_e w_e; an expert that does not adapt a site counts there with zero."""

    rank: Rank = "sum"

    def __post_init__(self) -> None:
        check_rank(self.rank)

    def merged_sites(self, experts: Experts, generator: torch.Generator) -> dict[str, Cut]:
        """See Merge.merged_sites. Raises ConfigError when the weights do not sum to something positive."""
        total = sum(experts.weights)
        if total <= 0:
            raise ConfigError(f"weights sum to {total}, which no mean can divide by; give weights with a positive sum")
        shares = tuple(weight / total for weight in experts.weights)
        return Linear(rank=self.rank).merged_sites(replace(experts, weights=shares), generator)
