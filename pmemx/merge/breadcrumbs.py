"""Model breadcrumbs: keep the magnitudes between outliers and noise of every tensor (arXiv:2312.06795)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pmemx.core.errors import ConfigError
from pmemx.merge.entrywise import Prune, Pruner, check_density
from pmemx.merge.space import Stack


@dataclass(frozen=True, kw_only=True)
class Breadcrumbs(Prune):
    """density: the share of entries kept, in every tensor alone. gamma: the share of largest ones dropped.

    int(density * entries) are kept: those below the int(gamma * entries) largest, of which fewer are dropped where
    density leaves no room; density 1 keeps everything. So has mergekit it, but for a gamma that rounds to no entry:
    mergekit (at 007d093) then keeps nothing, and this trims by magnitude. The authors' code counts in each row alone.
    """

    density: float = 0.2
    gamma: float = 0.01

    def __post_init__(self) -> None:
        check_density(self.density)
        if not 0 <= self.gamma < 1:
            raise ConfigError(f"gamma {self.gamma} is no share of largest entries to drop; give one from 0 to below 1")

    def pruner(self, stacks: Callable[[], Iterator[Stack]], generator: torch.Generator) -> Pruner:
        """See Prune.pruner. What it returns raises ConfigError for a tensor of which nothing would be left."""

        def pruned(stack: Stack) -> Tensor:
            tensors = stack.tensors.flatten(start_dim=1)
            entries = tensors.shape[1]
            kept = int(self.density * entries)
            if kept == 0:
                raise ConfigError(
                    f"density {self.density} keeps none of {entries} entries; give at least {1 / entries}"
                )
            outliers = min(int(self.gamma * entries), entries - kept)
            order = tensors.abs().argsort(dim=1, descending=True, stable=True)
            mask = torch.zeros_like(tensors).scatter_(1, order[:, outliers : outliers + kept], 1.0)
            return stack.tensors * mask.view_as(stack.tensors)

        return pruned
