"""The interface of exports: blocks to files that another program reads."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from pmemx.core.block import CapabilityBlock
from pmemx.core.card import Version


class Exporter(ABC):
    """One target format. A frozen dataclass of its settings."""

    @abstractmethod
    def export(
        self, blocks: Sequence[CapabilityBlock], folder: Path, *, versions: Sequence[Version] = ()
    ) -> list[Path]:
        """Write blocks under a folder, which is made where it is missing; returns what was written, one path a block.

        versions: what each block is in its bank, in order, to be told beside it; empty for blocks of no bank. Other blocks
        that an earlier export left in the folder stay. Raises IncompatibleBlock when two blocks have one name, or a block
        does not fit the format.
        """
