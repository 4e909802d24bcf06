"""A number for every pair of experts, over all sites and by site."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from pmemx.core.block import CapabilityBlock
from pmemx.core.errors import IncompatibleBlock


@dataclass(frozen=True, eq=False)
class Pairs:
    """Symmetric matrices in float64, experts in the order of names; NaN where the number has no meaning for the pair."""

    names: tuple[str, ...]
    overall: Float[Tensor, "expert expert"]
    by_site: Mapping[str, Float[Tensor, "expert expert"]]


def names_of(blocks: Sequence[CapabilityBlock]) -> tuple[str, ...]:
    """Raises IncompatibleBlock for no blocks, for a name that comes twice, and for two bases."""
    if not blocks:
        raise IncompatibleBlock("a library needs at least one block; distil one or import an adapter folder")
    names = tuple(block.card.name for block in blocks)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise IncompatibleBlock(f"names in a library must be unique, got {twice[0]!r} twice; rename one block")
    if len({block.card.base for block in blocks}) > 1:
        owners = ", ".join(f"{block.card.name} on {block.card.base[:12]}" for block in blocks)
        raise IncompatibleBlock(f"blocks of different bases share no space ({owners}); compare those of one base")
    return names


def sites_of(blocks: Sequence[CapabilityBlock]) -> tuple[str, ...]:
    """The sites of all blocks, sorted."""
    return tuple(sorted({site for block in blocks for site in block.factors}))


def sum_by_expert(
    values: Float[Tensor, "row row"], owner: Int[Tensor, " row"], num_experts: int
) -> Float[Tensor, "expert expert"]:
    """Sum over the rows of each pair of owners, for symmetric values; exactly symmetric, as sums in two orders are not."""
    by_row = values.new_zeros(num_experts, values.shape[1]).index_add_(0, owner, values)
    found = values.new_zeros(num_experts, num_experts).index_add_(1, owner, by_row)
    return (found + found.T) / 2
