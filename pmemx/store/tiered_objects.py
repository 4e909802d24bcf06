"""Objects in two places: written to the warm one, read from whichever holds them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

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

    def get(self, sha256: str) -> bytes:
        """See Objects.get: from the warm place where it is there."""
        return (self.warm if self.warm.has(sha256) or not self.cold.has(sha256) else self.cold).get(sha256)

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
