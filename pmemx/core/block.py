"""A capability block: the low-rank factors of one expert and the card that says what they are."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from jaxtyping import Float
from torch import Tensor

from pmemx.core.card import BlockCard
from pmemx.core.errors import CorruptBlock

__all__ = ["BlockCard", "CapabilityBlock", "LoraFactors"]


def _all_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite. A finite sum says so in one pass; only another one asks entry by entry."""
    return math.isfinite(float(tensor.sum())) or bool(tensor.isfinite().all())


@dataclass(frozen=True, eq=False)
class LoraFactors:
    """The update of one site: delta W = scale * B @ A (arXiv:2106.09685)."""

    A: Float[Tensor, "rank width_in"]
    B: Float[Tensor, "width_out rank"]
    scale: float

    def __post_init__(self) -> None:
        if self.A.shape[0] != self.B.shape[1]:
            raise CorruptBlock(f"A has rank {self.A.shape[0]} and B has rank {self.B.shape[1]}; they must be equal")
        if not (math.isfinite(self.scale) and _all_finite(self.A) and _all_finite(self.B)):
            raise CorruptBlock("factors hold NaN or infinity; train the expert again with a smaller learning rate")

    @property
    def rank(self) -> int:
        """Number of rows of A."""
        return self.A.shape[0]

    def delta(self) -> Float[Tensor, "width_out width_in"]:
        """The dense update of the site's weight."""
        return self.scale * (self.B @ self.A)


@dataclass(frozen=True, eq=False)
class CapabilityBlock:
    """One expert: a card, and factors by the name of the adapted linear layer ("model.layers.0.mlp.up_proj")."""

    card: BlockCard
    factors: Mapping[str, LoraFactors]

    def __post_init__(self) -> None:
        if not self.factors:
            raise CorruptBlock(f"block {self.card.name!r} adapts no site; an expert needs at least one")
        object.__setattr__(self, "factors", MappingProxyType(dict(self.factors)))

    @property
    def num_parameters(self) -> int:
        """Entries of all factors."""
        return sum(f.A.numel() + f.B.numel() for f in self.factors.values())
