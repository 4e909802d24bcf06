"""Keep the largest entries of an expert by one threshold over all its sites: the trim of the TIES paper (arXiv:2306.01708)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pmemx.merge.entrywise import Prune, Pruner, check_density
from pmemx.merge.space import Stack


@dataclass(frozen=True, kw_only=True)
class Threshold(Prune):
    """density: the share of an expert's entries kept, over all sites that it adapts; equals of the last one are kept, too.

    The threshold is exact in float32 and found in two passes over the sites, whose entries are never held together.
    """

    density: float = 0.2

    def __post_init__(self) -> None:
        check_density(self.density)

    def pruner(self, stacks: Callable[[], Iterator[Stack]], generator: torch.Generator) -> Pruner:
        """See Prune.pruner."""
        thresholds = _thresholds(stacks, self.density)

        def pruned(stack: Stack) -> Tensor:
            kept = [_bits(t) >= thresholds[number] for number, t in zip(stack.experts, stack.tensors, strict=True)]
            return stack.tensors * torch.stack(kept)

        return pruned


def _thresholds(stacks: Callable[[], Iterator[Stack]], density: float) -> dict[int, int]:
    """The bits of the smallest magnitude that is kept, by the number of the expert: a radix selection of 16 bits a pass."""
    upper: dict[int, Tensor] = {}
    for number, bits in _walk(stacks):
        upper[number] = upper.get(number, 0) + (bits >> 16).bincount(minlength=1 << 16)
    heads, ranks = {}, {}
    for number, counts in upper.items():
        heads[number], ranks[number] = _nth_from_above(counts, max(1, int(density * int(counts.sum()))))
    lower: dict[int, Tensor] = {}
    for number, bits in _walk(stacks):
        inside = bits[(bits >> 16) == heads[number]] & 0xFFFF
        lower[number] = lower.get(number, 0) + inside.bincount(minlength=1 << 16)
    return {
        number: (heads[number] << 16) | _nth_from_above(counts, ranks[number])[0] for number, counts in lower.items()
    }


def _walk(stacks: Callable[[], Iterator[Stack]]) -> Iterator[tuple[int, Int[Tensor, " entry"]]]:
    for stack in stacks():
        for number, tensor in zip(stack.experts, stack.tensors, strict=True):
            yield number, _bits(tensor).flatten()


def _bits(tensor: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    # The bits of non-negative floats are ordered as the floats are.
    return tensor.abs().float().view(torch.int32)


def _nth_from_above(counts: Int[Tensor, " bin"], n: int) -> tuple[int, int]:
    """The bin of the n-th largest entry, and its place from above inside that bin."""
    above = counts.flip(0).cumsum(0)
    place = int((above < n).sum())
    return len(counts) - 1 - place, n - (int(above[place - 1]) if place else 0)
