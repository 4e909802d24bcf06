"""Deltas as they are: dense, scales included. What an expert does, however its factors are written."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pmemx.core.low_rank import Cut, truncate
from pmemx.core.merge import Experts
from pmemx.merge.space import Space, Stack, View


@dataclass(frozen=True)
class Deltas(Space):
    """What PEFT's "ties_svd", "dare_linear_svd", ... work on."""

    def view(self, experts: Experts, site: str) -> View:
        """See Space.view; merged deltas are no longer of low rank, so that the way back is an SVD."""
        numbers, updates, weights = zip(*experts.at(site), strict=True)
        deltas = torch.stack([update.delta() for update in updates])
        return View((Stack(numbers, deltas, torch.tensor(weights, dtype=deltas.dtype)),), _back)


def _back(merged: Sequence[Tensor], rank: int | float) -> Cut:
    (delta,) = merged
    return truncate(delta, rank)
