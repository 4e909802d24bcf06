"""GenKnowSub: subtract what experts of general text know from every other expert (arXiv:2505.10939)."""

import difflib
from dataclasses import dataclass
from functools import reduce

import torch
from torch import nn

from pmemx.core.block import CapabilityBlock, LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.core.low_rank import stacked
from pmemx.core.transform import Transform


@dataclass(frozen=True, kw_only=True)
class GeneralSubtraction(Transform):
    """dW_e - mean_g dW_g over the general experts g, exactly: A and B are stacked, and rank r becomes r + sum_g r_g.

    The mean is over all general experts, a site that one does not adapt being an update of zero there; an expert gains
    the sites that only they adapt. This is the paper's formula. PEFT's ArrowConfig(use_gks=True) subtracts the mean of
    the A from A and that of the B from B, in place and without scales, which is another update altogether.

    general: names of the general experts, which the bank holds as well (the paper's: one for the Wikipedia of each of
    three languages). keep_general: whether the result holds them, too, with the values that they had.
    Factors lie on the CPU in one type for all blocks, at least float32: scales and weights go into B, which half
    precision would round.
    Raises ConfigError for a name that no block has, and where no other block is left.
    """

    general: tuple[str, ...]
    keep_general: bool = False

    def __post_init__(self) -> None:
        if not self.general:
            raise ConfigError("general names no expert, so that nothing is subtracted; name one, or leave this out")
        if twice := sorted({name for name in self.general if self.general.count(name) > 1}):
            raise ConfigError(f"general names {twice[0]!r} twice; name it once")

    def transformed(self, blocks: tuple[CapabilityBlock, ...], model: nn.Module) -> tuple[CapabilityBlock, ...]:
        """See Transform.transformed; the model has no say in it."""
        names = [block.card.name for block in blocks]
        if unknown := sorted(set(self.general) - set(names)):
            near = difflib.get_close_matches(unknown[0], names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(sorted(names))}"
            raise ConfigError(f"general names {unknown[0]!r}, which no block of the bank is called; {hint}")
        if set(names) == set(self.general):
            raise ConfigError(f"all {len(names)} blocks are general, so that nothing is left to subtract from; add one")
        wide = _one_type(blocks)
        # By name, so that the order of the setting does not matter, not even to the last bit.
        general = sorted(
            (block for block in wide if block.card.name in self.general), key=lambda block: block.card.name
        )
        found = []
        for block in wide:
            if block.card.name not in self.general:
                found.append(self.changed(block, _without(block, general), general))
            elif self.keep_general:
                found.append(block)
        return tuple(found)


def _without(block: CapabilityBlock, general: list[CapabilityBlock]) -> dict[str, LoraFactors]:
    factors = {}
    for site in sorted({site for part in (block, *general) for site in part.factors}):
        parts = [(block, 1.0), *((other, -1 / len(general)) for other in general)]
        there = [(part.factors[site], weight) for part, weight in parts if site in part.factors]
        factors[site] = stacked([update for update, _ in there], [weight for _, weight in there])
    return factors


def _one_type(blocks: tuple[CapabilityBlock, ...]) -> list[CapabilityBlock]:
    tensors = [tensor for block in blocks for f in block.factors.values() for tensor in (f.A, f.B)]
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    return [
        CapabilityBlock(
            block.card,
            {
                site: LoraFactors(f.A.detach().to("cpu", dtype), f.B.detach().to("cpu", dtype), f.scale)
                for site, f in block.factors.items()
            },
        )
        for block in blocks
    ]
