"""DARE: drop entries at random and rescale the rest, so that the mean stays (arXiv:2311.03099; PEFT's kernel)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft.utils.merge_utils import random_pruning
from torch import Tensor

from pmemx.merge.entrywise import Prune, Pruner, check_density
from pmemx.merge.space import Stack


@dataclass(frozen=True, kw_only=True)
class Dare(Prune):
    """density: the probability with which an entry is kept; what is kept is divided by it.

    mergekit rescales by the ratio of the tensor's absolute sums instead; on one mask the two differ by some per cent.
    """

    density: float = 0.5

    def __post_init__(self) -> None:
        check_density(self.density)

    def pruner(self, stacks: Callable[[], Iterator[Stack]], generator: torch.Generator) -> Pruner:
        """See Prune.pruner; draws in the order of the sites and, at a site, of the experts."""

        def pruned(stack: Stack) -> Tensor:
            with _lent(generator):
                return torch.stack([random_pruning(tensor, self.density, rescale=True) for tensor in stack.tensors])

        return pruned


@contextmanager
def _lent(generator: torch.Generator) -> Iterator[None]:
    """PEFT draws from torch's global generator: for a while that one is ours, and afterwards what it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(generator.get_state())
        yield
        generator.set_state(torch.default_generator.get_state())
