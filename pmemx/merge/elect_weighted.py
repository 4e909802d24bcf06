"""TIES' election as mergekit defines it: weights vote, and the mean is weighted (arXiv:2306.01708, arXiv:2403.13257)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pmemx.core.errors import ConfigError
from pmemx.merge.entrywise import Combine


@dataclass(frozen=True)
class ElectWeighted(Combine):
    """sum of w_e t_e over the experts that agree with the sign of sum_e w_e t_e, divided by the sum of their weights.

    Weights that are all 1/E give E times what PEFT's mean gives; weights that are all 1 give the same.
    """

    def __call__(
        self, tensors: Float[Tensor, " expert *shape"], weights: Float[Tensor, " expert"]
    ) -> Float[Tensor, "*shape"]:
        """See Combine. Raises ConfigError for a weight that is not positive, which no weighted mean can have."""
        if not (weights > 0).all():
            raise ConfigError(f"a weighted mean has weight {weights.min().item():g}; give positive weights")
        weights = weights.view(-1, *(1 for _ in tensors.shape[1:]))
        weighted = weights * tensors
        elected = torch.where(weighted.sum(dim=0) >= 0, 1.0, -1.0)
        agreeing = weighted.sign() == elected
        share = (weights * agreeing).sum(dim=0)
        return (weighted * agreeing).sum(dim=0) / torch.where(share > 0, share, torch.ones_like(share))
