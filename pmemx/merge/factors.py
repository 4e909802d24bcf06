"""A and B merged apart, as PEFT's "linear", "ties", "dare_linear", ... do; to reproduce others, not to merge well."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pmemx.core.block import LoraFactors
from pmemx.core.errors import IncompatibleBlock
from pmemx.core.low_rank import Cut, thin
from pmemx.core.merge import Experts
from pmemx.merge.space import Space, Stack, View


@dataclass(frozen=True)
class Factors(Space):
    """Weight and scale enter by their root on either side; products of one expert's B and another's A arise."""

    def view(self, experts: Experts, site: str) -> View:
        """See Space.view. Raises IncompatibleBlock when ranks differ at a site."""
        numbers, updates, weights = zip(*experts.at(site), strict=True)
        ranks = sorted({update.rank for update in updates})
        if len(ranks) > 1:
            raise IncompatibleBlock(
                f"experts have ranks {', '.join(map(str, ranks))} at {site}, and factors can only be merged where ranks are "
                "equal; merge deltas, or distil all experts with one rank"
            )
        folded = [weight * update.scale for update, weight in zip(updates, weights, strict=True)]
        # A negative weight keeps its sign on one side only.
        sides = (
            ([update.A for update in updates], [math.copysign(math.sqrt(abs(w)), w) for w in folded]),
            ([update.B for update in updates], [math.sqrt(abs(w)) for w in folded]),
        )
        stacks = (Stack(numbers, torch.stack(side), torch.tensor(roots, dtype=side[0].dtype)) for side, roots in sides)
        return View(tuple(stacks), _back)


def _back(merged: Sequence[Tensor], rank: int | float) -> Cut:
    A, B = merged
    return thin(LoraFactors(A, B, 1.0), rank)
