"""Structures: which experts of which rank are born at which sites, for those that are trained together with their gate."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pmemx.core.block import LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.core.gate import layer_of
from pmemx.core.peft_config import adapted_sites

Born = tuple[Mapping[str, LoraFactors], ...]
"""What every expert begins with, by site."""


@dataclass(frozen=True)
class LinearSites:
    """The linear layers that experts of a base may adapt, in its own order: input and output width by name."""

    widths: Mapping[str, tuple[int, int]]

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that the sites belong to, lowest first."""
        return tuple(dict.fromkeys(map(layer_of, self.widths)))

    def called(self, targets: str | Sequence[str]) -> tuple[str, ...]:
        """Sites by the endings of their names ("up_proj"), or "all-linear" for all of them.

        Raises ConfigError for an ending that no site has.
        """
        for target in [targets] if isinstance(targets, str) else targets:
            if not self._found([target] if target != "all-linear" else target):
                endings = sorted({name.rpartition(".")[2] for name in self.widths})
                raise ConfigError(f"no linear layer of the base is called {target!r}; there are {', '.join(endings)}")
        found = self._found(targets)
        return tuple(name for name in self.widths if name in found)

    def _found(self, targets: str | Sequence[str]) -> set[str]:
        return adapted_sites({"target_modules": targets}, self.widths)


class Structure(ABC):
    """From the linear layers of a base to the experts that begin there. A frozen dataclass of settings."""

    @abstractmethod
    def experts(self, sites: LinearSites, generator: torch.Generator) -> Born:
        """What every expert begins with: A is drawn, B is zero, so that the base speaks as before.

        What is one tensor at a site is one parameter: experts that share an A are trained with one. generator: on the CPU;
        it alone decides the draws. Raises ConfigError when the base has no such layers.
        """


def drawn(rank: int, width_in: int, generator: torch.Generator) -> Float[Tensor, "rank width_in"]:
    """A as LoRA and PEFT draw it: Kaiming-uniform with a = sqrt(5), which is +-1 / sqrt(width_in)."""
    return nn.init.kaiming_uniform_(torch.empty(rank, width_in), a=math.sqrt(5), generator=generator)


def newborn(A: Float[Tensor, "rank width_in"], width_out: int, alpha: float) -> LoraFactors:
    """A with a B of zero and the scale alpha / rank."""
    return LoraFactors(A, torch.zeros(width_out, A.shape[0]), alpha / A.shape[0])


def check_sizes(*, rank: int, alpha: float, num_experts: Iterable[int]) -> None:
    """Raises ConfigError for a rank or a number of experts below 1, and for an alpha that scales nothing."""
    if rank < 1:
        raise ConfigError(f"structure.rank = {rank} must be at least 1; 4 to 16 is usual")
    if not 0 < alpha < math.inf:
        raise ConfigError(
            f"structure.alpha = {alpha} must be positive and finite; one to eight times the rank is usual"
        )
    if not (numbers := tuple(num_experts)) or min(numbers) < 1:
        raise ConfigError(
            f"structure.num_experts = {numbers} leaves a layer without experts; give every layer at least 1"
        )
