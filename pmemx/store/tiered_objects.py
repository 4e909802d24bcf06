"""Objects in two places: written to the warm one, read from whichever holds them."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import final

from pmemx.core.errors import CorruptBlock
from pmemx.core.objects import Objects, StoredObject


@final
@dataclass(frozen=True)
class TieredObjects(Objects):
    """A warm place before a cold one. What lies in both is one object."""

    warm: Objects
    cold: Objects

    def put(self, data: bytes) -> str:
        """See Objects.put: into the warm place."""
        return self.warm.put(data)

    def check_writable(self) -> None:
        """See Objects.check_writable: of the warm place."""
        self.warm.check_writable()

    def get(self, sha256: str) -> bytes:
        """See Objects.get: from the warm place where it is there and sound."""
        for place in (self.warm, self.cold):
            with suppress(CorruptBlock):
                return place.get(sha256)
        # It may have come from the cold place in between.
        return self.warm.get(sha256)

    def has(self, sha256: str) -> bool:
        """See Objects.has."""
        return self.warm.has(sha256) or self.cold.has(sha256)

    def delete(self, sha256: str) -> None:
        """See Objects.delete: from both."""
        self.warm.delete(sha256)
        self.cold.delete(sha256)

    def listing(self) -> Iterator[StoredObject]:
        """See Objects.listing."""
        seen = set()
        for place in (self.warm, self.cold):
            for item in place.listing():
                if item.sha256 not in seen:
                    seen.add(item.sha256)
                    yield item

    def leftovers(self) -> Iterator[StoredObject]:
        """See Objects.leftovers."""
        yield from self.warm.leftovers()
        yield from self.cold.leftovers()

    def clear_leftover(self, name: str) -> None:
        """See Objects.clear_leftover: from both."""
        self.warm.clear_leftover(name)
        self.cold.clear_leftover(name)
