"""The interface of a bank on disk: immutable versions under names, with tags that move."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

from pmemx.core.block import CapabilityBlock
from pmemx.core.card import Version
from pmemx.core.promotion import Promotions

__all__ = ["Store", "Version"]


class Store(ABC):
    """Content-addressed blocks. A reference is a name (its latest version), "name@3", "name@tag", or a digest."""

    @abstractmethod
    def put(self, block: CapabilityBlock, *, message: str = "", after: int | None = None) -> Version:
        """Add a version; a block equal to the latest version of its name adds nothing and returns that version.

        message: why, for whoever reads the history. after: the number that the latest version must have (0: no version
        yet), so that nobody's change is lost; Diverged is raised when it has another.
        """

    @abstractmethod
    def check_writable(self) -> None:
        """Raises StorageError or AccessDenied where no put could be done, as far as that can be told without one."""

    @abstractmethod
    def get(self, reference: str, *, base: str | None = None) -> CapabilityBlock:
        """The block behind a reference; base, where given, is the fingerprint that its card must carry.

        Raises UnknownBlock, CorruptBlock when the bytes are not those that were put, IncompatibleBlock for another base.
        """

    @abstractmethod
    def leave(self, references: Iterable[str], *, redacted: bool = False, to: str = "files") -> list[CapabilityBlock]:
        """Blocks to be written outside the store, each of which is noted as having left it.

        redacted: with cards that tell nothing of their making. to: where, for whoever reads the note. Raises
        AccessDenied for what may not leave in that form, and as get does; nothing is noted then.
        """

    @abstractmethod
    def find(self, reference: str) -> Version:
        """The version behind a reference, without reading its weights."""

    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """References to the blocks that a router may choose, sorted."""

    @abstractmethod
    def history(self, name: str) -> tuple[Version, ...]:
        """Versions of a name, oldest first."""

    @abstractmethod
    def tag(self, reference: str, tag: str, *, reason: str = "") -> Version:
        """Point a tag of the block's name at a version."""

    @abstractmethod
    def tags(self, name: str) -> dict[str, int]:
        """Tags of a name and the version numbers they point at."""

    @abstractmethod
    def rollback(self, name: str, number: int, *, message: str = "") -> Version:
        """Add a new latest version with the bytes of an earlier one; the history is kept whole.

        Where the latest version has those bytes already, it is returned and nothing is added.
        """

    @property
    @abstractmethod
    def promotions(self) -> Promotions:
        """Figures of these versions, and the policies under which they take tags."""

    @abstractmethod
    def verify(self) -> tuple[str, ...]:
        """Check every stored byte; one line per finding, none when the store is sound."""
