"""Small banks of distinct blocks, and a clock that goes where a test sends it."""

import datetime
from pathlib import Path

import torch

from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.card import Version
from pmemx.store.governed import GovernedStore


class Hands:
    """A clock that a test moves; starts in 2026."""

    def __init__(self) -> None:
        self.time = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)

    def __call__(self) -> datetime.datetime:
        return self.time

    def turn(self, **by: float) -> None:
        """Forward, or backward by a negative amount."""
        self.time += datetime.timedelta(**by)


def block(name: str, fill: float = 1.0, **card: object) -> CapabilityBlock:
    """A block whose every factor holds one number."""
    factors = {"model.q_proj": LoraFactors(torch.full((2, 3), fill), torch.full((4, 2), fill), 0.5)}
    return CapabilityBlock(BlockCard(name, "domain of " + name, "b" * 64, **card), factors)  # type: ignore[arg-type]


def put(store: GovernedStore, name: str, fill: float = 1.0, **card: object) -> Version:
    """Put such a block."""
    return store.put(block(name, fill, **card))


def fill(store: GovernedStore, reference: str) -> float:
    """The number that a block's factors hold."""
    return store.get(reference).factors["model.q_proj"].A[0, 0].item()


def opened(path: Path, clock: Hands, principal: str = "root") -> GovernedStore:
    """A bank in a folder."""
    return GovernedStore(path / "bank", principal=principal, clock=clock)
