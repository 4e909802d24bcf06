"""Keep the largest entries of every tensor of an expert (PEFT's kernel; mergekit prunes so, too)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from peft.utils.merge_utils import magnitude_based_pruning
from torch import Tensor

from pmemx.core.errors import ConfigError
from pmemx.merge.entrywise import Prune, Pruner, check_density
from pmemx.merge.space import Stack


@dataclass(frozen=True, kw_only=True)
class Magnitude(Prune):
    """density: the share of entries kept, in every tensor alone; int(density * entries) of them, as PEFT has it."""

    density: float = 0.2

    def __post_init__(self) -> None:
        check_density(self.density)

    def pruner(self, stacks: Callable[[], Iterator[Stack]], generator: torch.Generator) -> Pruner:
        """See Prune.pruner. What it returns raises ConfigError for a tensor of which nothing would be left."""

        def pruned(stack: Stack) -> Tensor:
            entries = stack.tensors[0].numel()
            if int(self.density * entries) == 0:
                raise ConfigError(
                    f"density {self.density} keeps none of {entries} entries; give at least {1 / entries}"
                )
            return torch.stack([magnitude_based_pruning(tensor, self.density) for tensor in stack.tensors])

        return pruned
