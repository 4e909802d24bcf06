"""Cosine similarity of updates, from products of rank by rank: <dW_e, dW_f> = s_e s_f tr(B_e^T B_f A_f A_e^T)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pmemx.core.block import CapabilityBlock
from pmemx.library.pairs import Pairs, names_of, sites_of, sum_by_expert


def similarity(blocks: Sequence[CapabilityBlock]) -> Pairs:
    """cos of the Frobenius inner product of every pair of updates, in -1..1; exact up to rounding in float64.

    Unlike a cosine of factors it does not depend on how an update is split into A and B. Overall, a site that an expert
    does not adapt is an update of zero there. NaN where one of the two updates is zero (by site: or absent).
    """
    names = names_of(blocks)
    inner = {site: _inner(blocks, site) for site in sites_of(blocks)}
    by_site = {site: _cosine(products) for site, products in inner.items()}
    return Pairs(names, _cosine(torch.stack(list(inner.values())).sum(dim=0)), by_site)


def _inner(blocks: Sequence[CapabilityBlock], site: str) -> Float[Tensor, "expert expert"]:
    here = [(number, block.factors[site]) for number, block in enumerate(blocks) if site in block.factors]
    A = torch.cat([update.A.detach().double().cpu() for _, update in here])
    B = torch.cat([update.scale * update.B.detach().double().cpu() for _, update in here], dim=1)
    owner = torch.tensor([number for number, update in here for _ in range(update.rank)])
    return sum_by_expert((A @ A.T) * (B.T @ B), owner, len(blocks))


def _cosine(inner: Float[Tensor, "expert expert"]) -> Float[Tensor, "expert expert"]:
    # An update of zero has norm 0 and no direction: 0 / 0 says so.
    norm = inner.diagonal().clamp(min=0).sqrt()
    return (inner / (norm[:, None] * norm)).clamp(-1.0, 1.0)
