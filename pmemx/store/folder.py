"""A bank in a folder: weights, manifests and records are files, checked on every read, with no service and no database."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pmemx.core.block import CapabilityBlock, LoraFactors
from pmemx.core.card import Version
from pmemx.core.errors import CorruptBlock, IncompatibleBlock
from pmemx.core.factor_file import pack, unpack
from pmemx.core.store import Store
from pmemx.store.index import FolderIndex, check_name
from pmemx.store.manifest import Manifest, Site


@dataclass(frozen=True)
class FolderStore(Store):
    """Many processes may read and put at once. The folder is made by the first put.

    The digest of a version is the sha-256 of its manifest, which names the sha-256 of its weights: whoever
    knows the digest knows every byte, the scales included.
    """

    path: Path | str

    @property
    def index(self) -> FolderIndex:
        """Names, versions and tags."""
        return FolderIndex(Path(self.path))

    def put(self, block: CapabilityBlock) -> Version:
        """See Store.put. Raises ConfigError for a name that cannot be shown."""
        check_name(block.card.name)
        weights = pack(block.factors)
        sites = tuple(
            Site(name, item.rank, item.A.shape[1], item.B.shape[0], item.scale) for name, item in block.factors.items()
        )
        blobs = self.index.blobs
        manifest = Manifest(block.card, sites, blobs.put(weights), len(weights))
        return self.index.append(block.card.name, blobs.put(manifest.encode()))

    def get(self, reference: str, *, base: str | None = None) -> CapabilityBlock:
        """See Store.get."""
        version = self.index.find(reference)
        card = version.card
        if base is not None and card.base != base:
            origin = f"was made on base {card.base[:12]} ({card.base_name})" if card.base else "names no base"
            raise IncompatibleBlock(
                f"block {version.name}@{version.number} {origin}, but the model is {base[:12]}; "
                "load its own base, or distil it again on this one"
            )
        return self._block(version.digest)

    def find(self, reference: str) -> Version:
        """See Store.find."""
        return self.index.find(reference)

    def names(self) -> tuple[str, ...]:
        """See Store.names."""
        return self.index.names()

    def history(self, name: str) -> tuple[Version, ...]:
        """See Store.history."""
        return self.index.history(name)

    def tag(self, reference: str, tag: str) -> Version:
        """See Store.tag."""
        return self.index.tag(reference, tag)

    def tags(self, name: str) -> dict[str, int]:
        """See Store.tags."""
        return self.index.tags(name)

    def rollback(self, name: str, number: int) -> Version:
        """See Store.rollback."""
        return self.index.rollback(name, number)

    def verify(self) -> tuple[str, ...]:
        """See Store.verify. What a crash leaves, an unfinished file or a blob that no version uses, is no finding."""
        return tuple(self._findings())

    def _findings(self) -> Iterator[str]:
        for file in self.index.files():
            try:
                record = self.index.read(file)
            except CorruptBlock as error:
                yield str(error)
                continue
            for digest in dict.fromkeys(entry.digest for entry in record.versions):
                try:
                    self._block(digest)
                except CorruptBlock as error:
                    yield f"block {record.name!r}: {error}"

    def _block(self, digest: str) -> CapabilityBlock:
        manifest = self.index.manifest(digest)
        data = self.index.blobs.get(manifest.weights)
        try:
            return CapabilityBlock(manifest.card, _factors(manifest, data))
        except CorruptBlock as error:
            raise CorruptBlock(f"{self.index.blobs.file(manifest.weights)}: {error}") from error


def _factors(manifest: Manifest, data: bytes) -> dict[str, LoraFactors]:
    file = unpack(data)
    declared = {site.name: ((site.rank, site.width_in), (site.width_out, site.rank)) for site in manifest.sites}
    found = {name: tuple(tuple(pair[f].shape) for f in sorted(pair)) for name, pair in file.sites.items()}
    odd = [*file.others, *(name for name in declared | found if declared.get(name) != found.get(name))]
    if odd:
        raise CorruptBlock(f"tensors and manifest differ in {', '.join(odd[:4])}; put the block again")
    return {
        site.name: LoraFactors(file.sites[site.name]["A"], file.sites[site.name]["B"], site.scale)
        for site in manifest.sites
    }
