"""Entrywise merges: prune each expert's tensor, combine what is left entry by entry, in a space of choice."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from pmemx.core.errors import ConfigError
from pmemx.core.low_rank import Cut, Rank, check_rank
from pmemx.core.merge import Experts, Merge
from pmemx.merge.space import Space, Stack


class Combine(ABC):
    """Tensors of experts to one tensor, entry by entry. A frozen dataclass."""

    @abstractmethod
    def __call__(
        self, tensors: Float[Tensor, " expert *shape"], weights: Float[Tensor, " expert"]
    ) -> Float[Tensor, "*shape"]:
        """An expert whose entry is zero has no say in it."""


Pruner = Callable[[Stack], Tensor]
"""The tensors of a stack with entries set to zero, in the stack's own shape."""


class Prune(ABC):
    """Which entries of an expert take part. A frozen dataclass."""

    @abstractmethod
    def pruner(self, stacks: Callable[[], Iterator[Stack]], generator: torch.Generator) -> Pruner:
        """Look at all sites where that is needed (stacks() walks over them, any number of times), then prune one by one."""


def check_density(density: float) -> None:
    """Raises ConfigError for a density outside (0, 1]."""
    if not 0 < density <= 1:
        raise ConfigError(f"density {density} is no share of entries to keep; give one above 0, up to 1")


@dataclass(frozen=True, kw_only=True)
class EntrywiseMerge(Merge):
    """scaling * combine(prune(tensors), weights); prune None keeps every entry."""

    combine: Combine
    prune: Prune | None
    space: Space
    scaling: float = 1.0
    rank: Rank = "sum"

    def __post_init__(self) -> None:
        check_rank(self.rank)

    def merged_sites(self, experts: Experts, generator: torch.Generator) -> dict[str, Cut]:
        """See Merge.merged_sites."""

        def stacks() -> Iterator[Stack]:
            for site in experts.sites:
                yield from self.space.view(experts, site).stacks

        pruned = self.prune.pruner(stacks, generator) if self.prune else _whole
        cuts = {}
        for site in experts.sites:
            view = self.space.view(experts, site)
            merged = [self.combine(pruned(stack), stack.weights) for stack in view.stacks]
            cut = view.back(merged, experts.limit(self.rank, site))
            cuts[site] = replace(cut, factors=replace(cut.factors, scale=self.scaling))
        return cuts


def _whole(stack: Stack) -> Tensor:
    return stack.tensors
