"""DELLA's MagPrune: drop entries at random, small ones of a row more often than large ones (arXiv:2406.11617)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pmemx.core.errors import ConfigError
from pmemx.merge.entrywise import Prune, Pruner, check_density
from pmemx.merge.space import Stack


@dataclass(frozen=True, kw_only=True)
class Della(Prune):
    """density: the mean probability with which an entry is kept; 1 keeps everything, whatever epsilon is.

    epsilon: half the window of probabilities. In a row, the smallest magnitude is kept with density - epsilon, the
    largest with density + epsilon, the others evenly between by rank; what is kept is divided by its own probability,
    so that the mean of the draws is the tensor. So has it the authors' code, whose window_size is 2 epsilon. mergekit
    draws alike but rescales a whole tensor by one factor, the ratio of absolute sums, which favours large entries.
    """

    density: float = 0.5
    epsilon: float = 0.15

    def __post_init__(self) -> None:
        check_density(self.density)
        if not self.epsilon >= 0:
            raise ConfigError(f"epsilon {self.epsilon} is half a window of probabilities; give 0 or more")
        smallest, largest = self.density - self.epsilon, self.density + self.epsilon
        if self.density < 1 and not (smallest > 0 and largest <= 1):
            raise ConfigError(
                f"density {self.density} and epsilon {self.epsilon} keep with {smallest:g} to {largest:g}; "
                f"give an epsilon below {self.density:g} and up to {1 - self.density:g}, so that they lie in (0, 1]"
            )

    def pruner(self, stacks: Callable[[], Iterator[Stack]], generator: torch.Generator) -> Pruner:
        """See Prune.pruner; draws in the order of the sites and, at a site, of the experts."""

        def pruned(stack: Stack) -> Tensor:
            if self.density == 1:
                return stack.tensors
            keep = self._probabilities(stack.tensors)
            return stack.tensors * (torch.rand(keep.shape, generator=generator, dtype=keep.dtype) < keep) / keep

        return pruned

    def _probabilities(self, tensors: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        width = tensors.shape[-1]
        by_rank = torch.linspace(self.density - self.epsilon, self.density + self.epsilon, width, dtype=tensors.dtype)
        # Stable, so that equal magnitudes are ranked by place on every machine.
        order = tensors.abs().argsort(dim=-1, stable=True)
        return torch.empty_like(tensors).scatter_(-1, order, by_rank.expand_as(tensors))
