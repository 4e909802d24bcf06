"""A block as its manifest and the bytes of its weights, and back with every check."""

import hashlib

import torch

from pmemx.core.block import CapabilityBlock, LoraFactors
from pmemx.core.errors import CorruptBlock
from pmemx.core.factor_file import pack, unpack
from pmemx.store.manifest import Manifest, Site

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def encode(block: CapabilityBlock) -> tuple[Manifest, bytes]:
    """The manifest and the weights that it names."""
    weights = pack(block.factors)
    sites = tuple(
        Site(name, item.rank, item.A.shape[1], item.B.shape[0], item.scale) for name, item in block.factors.items()
    )
    return Manifest(block.card, sites, hashlib.sha256(weights).hexdigest(), len(weights)), weights


def decode(manifest: Manifest, weights: bytes) -> CapabilityBlock:
    """Raises CorruptBlock when the weights are not what the manifest declares, or not finite."""
    file = unpack(weights)
    declared = {site.name: ((site.rank, site.width_in), (site.width_out, site.rank)) for site in manifest.sites}
    found = {name: tuple(tuple(pair[f].shape) for f in sorted(pair)) for name, pair in file.sites.items()}
    strange = [name for name, pair in file.sites.items() if any(item.dtype not in _FLOATS for item in pair.values())]
    if strange:
        raise CorruptBlock(
            f"the factors of {strange[0]} are no floating-point numbers of 16 bits or more; put the block again"
        )
    odd = [*file.others, *(name for name in declared | found if declared.get(name) != found.get(name))]
    if odd:
        raise CorruptBlock(f"tensors and manifest differ in {', '.join(odd[:4])}; put the block again")
    factors = {
        site.name: LoraFactors(file.sites[site.name]["A"], file.sites[site.name]["B"], site.scale)
        for site in manifest.sites
    }
    return CapabilityBlock(manifest.card, factors)
