"""Spaces: what of an update the entrywise methods see, and the way back to factors."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pmemx.core.low_rank import Cut
from pmemx.core.merge import Experts


@dataclass(frozen=True, eq=False)
class Stack:
    """One tensor of every expert that adapts a site, beside its weight. experts: their numbers."""

    experts: tuple[int, ...]
    tensors: Float[Tensor, " expert *shape"]
    weights: Float[Tensor, " expert"]


@dataclass(frozen=True, eq=False)
class View:
    """A site in a space. back: one merged tensor a stack, and the rank to keep, to the site's update."""

    stacks: tuple[Stack, ...]
    back: Callable[[Sequence[Tensor], int | float], Cut]


class Space(ABC):
    """A frozen dataclass."""

    @abstractmethod
    def view(self, experts: Experts, site: str) -> View:
        """One site at a time, so that no more than one is ever dense."""
