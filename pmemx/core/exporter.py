"""The interface of exports: blocks to files that another program reads."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from pmemx.core.block import CapabilityBlock


class Exporter(ABC):
    """One target format. A frozen dataclass of its settings."""

    @abstractmethod
    def export(self, blocks: Sequence[CapabilityBlock], folder: Path) -> list[Path]:
        """Write blocks under a folder, which is made where it is missing; returns what was written, one path a block.

        Raises IncompatibleBlock when two blocks have one name, or a block does not fit the format.
        """
