"""SCE: select entries by variance, calculate coefficients from energies, erase the sign minority (arXiv:2408.07990)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pmemx.core.errors import ConfigError
from pmemx.merge.entrywise import Combine, Prune, Pruner, check_density
from pmemx.merge.space import Stack


@dataclass(frozen=True, kw_only=True)
class TopVariance(Prune):
    """Select: keep the entries, the same ones of all experts, at which w_e t_e differs most between the experts.

    density: the share kept in every tensor alone, of the entries with any variance, as mergekit counts; 1 keeps all.
    The variance is that over all experts of the merge: one that does not adapt a site counts there with zero.
    """

    density: float = 0.2

    def __post_init__(self) -> None:
        check_density(self.density)

    def pruner(self, stacks: Callable[[], Iterator[Stack]], generator: torch.Generator) -> Pruner:
        """See Prune.pruner. What it returns raises ConfigError for updates of which nothing would be left."""
        if self.density == 1:
            return lambda stack: stack.tensors
        num_experts = len({number for stack in stacks() for number in stack.experts})

        def pruned(stack: Stack) -> Tensor:
            variance = _variance(_weighted(stack.tensors, stack.weights), num_experts).flatten()
            differing = int(variance.count_nonzero())
            kept = int(self.density * differing)
            if kept == 0 and stack.tensors.any():
                raise ConfigError(
                    f"density {self.density} keeps none of {differing} entries at which {num_experts} experts differ; "
                    "give a larger density, 1 to keep all, or experts that differ"
                )
            mask = torch.zeros_like(variance).index_fill_(0, variance.topk(kept).indices, 1.0)
            return stack.tensors * mask.view_as(stack.tensors[0])

        return pruned


@dataclass(frozen=True)
class EnergyWeighted(Combine):
    """Calculate and erase: the mean, weighted by energy, of the w_e t_e that agree with the sign of sum_e w_e t_e.

    An energy is the sum of squares of an expert's whole tensor. The paper has no weights: each scales an update here,
    and with all of them 1 this is mergekit's rule.
    """

    def __call__(
        self, tensors: Float[Tensor, " expert *shape"], weights: Float[Tensor, " expert"]
    ) -> Float[Tensor, "*shape"]:
        """See Combine."""
        updates = _weighted(tensors, weights)
        energies = updates.square().sum(dim=tuple(range(1, updates.ndim)), keepdim=True)
        majority = torch.where(updates.sum(dim=0) >= 0, 1.0, -1.0)
        coefficients = energies * (updates.sign() == majority)
        total = coefficients.sum(dim=0)
        return (coefficients * updates).sum(dim=0) / torch.where(total > 0, total, torch.ones_like(total))


def _weighted(
    tensors: Float[Tensor, " expert *shape"], weights: Float[Tensor, " expert"]
) -> Float[Tensor, " expert *shape"]:
    return tensors * weights.view(-1, *(1 for _ in tensors.shape[1:]))


def _variance(updates: Float[Tensor, " expert *shape"], num_experts: int) -> Float[Tensor, "*shape"]:
    """Over num_experts, of which those that are not among the updates are zero."""
    mean = updates.sum(dim=0) / num_experts
    absent = num_experts - len(updates)
    return ((updates - mean).square().sum(dim=0) + absent * mean.square()) / num_experts
