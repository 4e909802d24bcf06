"""The interface of adapters: trainable low-rank factors injected into a frozen base, and taken out of it again."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import nn

from pmemx.core.block import LoraFactors


class Adapter(ABC):
    """How an expert is parametrised while it is trained. A frozen dataclass of settings."""

    @abstractmethod
    def widened(self, factor: int) -> "Adapter":
        """The same adapter with `factor` times the rank at the same scale: as many parameters as `factor` experts."""

    @abstractmethod
    def inject(self, model: nn.Module, seed: int) -> nn.Module:
        """The model with one trainable adapter in float32, its base frozen; the model itself is changed in place.

        The seed alone decides the initial factors; no global random state is read or moved. With its initial
        factors the model computes what the base computes. Raises ConfigError when a target is no linear layer of the model.
        """

    @abstractmethod
    def extract(self, adapted: nn.Module) -> tuple[dict[str, LoraFactors], dict[str, Any]]:
        """Copies of the factors by the site's name in the base model, and the config of the adapter as JSON types."""

    @abstractmethod
    def restore(self, adapted: nn.Module, factors: Mapping[str, LoraFactors]) -> None:
        """Load factors back, to go on training them. Raises IncompatibleBlock unless sites, shapes and scales are equal."""

    @abstractmethod
    def remove(self, adapted: nn.Module) -> nn.Module:
        """The base model with its own layers and weights; it stays frozen."""
