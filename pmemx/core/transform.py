"""The interface of transforms: the experts of one base to the experts that a bank shall hold in their place."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import final

from torch import nn

from pmemx.core.block import CapabilityBlock, LoraFactors
from pmemx.core.canonical import plain
from pmemx.core.card import Sensitivity
from pmemx.core.errors import IncompatibleBlock
from pmemx.core.low_rank import energy, stacked


class Transform(ABC):
    """A bank to a bank. A frozen dataclass of settings, which becomes part of the recipe of every block that it changes.

    Neither the blocks nor the model are touched. Blocks keep their names and come in the order in which they were given.
    """

    @final
    def __call__(self, blocks: Sequence[CapabilityBlock], model: nn.Module) -> tuple[CapabilityBlock, ...]:
        """model: the frozen base of the blocks.

        Raises IncompatibleBlock when there is no block, a name comes twice, or bases or shapes differ.
        """
        _check(blocks)
        return self.transformed(tuple(blocks), model)

    @abstractmethod
    def transformed(self, blocks: tuple[CapabilityBlock, ...], model: nn.Module) -> tuple[CapabilityBlock, ...]:
        """The blocks that take the place of these."""

    @final
    def changed(
        self,
        block: CapabilityBlock,
        factors: Mapping[str, LoraFactors],
        entered: Sequence[CapabilityBlock] = (),
    ) -> CapabilityBlock:
        """The block with other factors, and a card that says so. entered: the other blocks that those were made from.

        Origin, domain and parents stay; digests are for whoever stores the block to add. What was measured of the old
        factors goes, and relative_change comes: the Frobenius norm of what changed over all sites, as a share of the
        old update's.
        """
        cards = [block.card, *(other.card for other in entered)]
        licences = sorted({card.licence for card in cards})
        card = replace(
            block.card,
            sources=tuple(dict.fromkeys(source for card in cards for source in card.sources)),
            # What was made of a secret is one.
            sensitivity=max((Sensitivity(card.sensitivity) for card in cards), key=list(Sensitivity).index).value,
            # One of them without a licence leaves the whole without one.
            licence=" AND ".join(licences) if all(licences) else "",
            made_by="pmemx transform",
            created="",
            # One level down, so that nobody takes this block for the one that the old recipe's digest stands for.
            recipe={"transform": plain(self), "of": dict(block.card.recipe)},
            metrics=_relative_change(block.factors, factors),
            peft_config={},
        )
        return CapabilityBlock(card, factors)


def _relative_change(old: Mapping[str, LoraFactors], new: Mapping[str, LoraFactors]) -> dict[str, float]:
    total = sum(energy(update) for update in old.values())
    if not total:
        return {}
    moved = 0.0
    for site in old.keys() | new.keys():
        parts = [(side[site], weight) for side, weight in ((new, 1.0), (old, -1.0)) if site in side]
        wide = [LoraFactors(part.A.double().cpu(), part.B.double().cpu(), part.scale) for part, _ in parts]
        moved += max(0.0, energy(stacked(wide, [weight for _, weight in parts])))
    return {"relative_change": (moved / total) ** 0.5}


def _check(blocks: Sequence[CapabilityBlock]) -> None:
    if not blocks:
        raise IncompatibleBlock("a transform needs at least one block; distil one or import an adapter folder")
    names = [block.card.name for block in blocks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise IncompatibleBlock(f"names in a bank must be unique, got {twice[0]!r} twice; rename one block")
    if len({block.card.base for block in blocks}) > 1:
        owners = ", ".join(f"{block.card.name} on {block.card.base[:12]}" for block in blocks)
        raise IncompatibleBlock(f"blocks of different bases cannot share a bank ({owners}); give each base its own")
    shapes: dict[str, tuple[int, int]] = {}
    for block in blocks:
        for site, factors in block.factors.items():
            shape = (factors.A.shape[1], factors.B.shape[0])
            if shapes.setdefault(site, shape) != shape:
                raise IncompatibleBlock(
                    f"{site} maps {shape[0]} to {shape[1]} in {block.card.name}, but {shapes[site][0]} to "
                    f"{shapes[site][1]} in another block; their bases differ, so transform those of one base"
                )
