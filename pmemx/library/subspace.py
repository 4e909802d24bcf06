"""Overlap of the subspaces that updates read (right singular vectors) and write (left), beside what chance gives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pmemx.core.block import CapabilityBlock, LoraFactors
from pmemx.core.spectrum import right_spectrum
from pmemx.library.pairs import Pairs, names_of, sites_of, sum_by_expert

Basis = Callable[[LoraFactors], Float[Tensor, "direction width"]]


@dataclass(frozen=True, eq=False)
class Overlap:
    """|V_e^T V_f|_F^2 / min(r_e, r_f) of every pair, in 0..1, and its floor.

    r is the numerical rank of an update, V its singular vectors: 1 where the smaller subspace lies in the larger one, 0
    where they are orthogonal (the subspace similarity of arXiv:2106.09685, section 7.2, at full rank). floor: the
    expectation for two independent random subspaces of R^d. With projectors P_e, P_f, |V_e^T V_f|_F^2 = tr(P_e P_f) and
    E P_f = (r_f / d) I, so that it is r_e r_f / d over min(r_e, r_f), which is max(r_e, r_f) / d.
    Overall: the mean over the sites that both adapt, of either. NaN where there is none, or an update is zero.
    Experts whose training began with the same A have similar input subspaces from the start, whatever they learnt.
    """

    value: Pairs
    floor: Pairs


def input_overlap(blocks: Sequence[CapabilityBlock]) -> Overlap:
    """Of the right singular subspaces, in the space of a site's inputs."""
    return _overlap(blocks, _right)


def output_overlap(blocks: Sequence[CapabilityBlock]) -> Overlap:
    """Of the left singular subspaces, in the space of a site's outputs."""
    return _overlap(blocks, _left)


def _right(update: LoraFactors) -> Float[Tensor, "direction width_in"]:
    A, B = update.A.detach().double().cpu(), update.B.detach().double().cpu()
    return right_spectrum(LoraFactors(A, B, update.scale))[1]


def _left(update: LoraFactors) -> Float[Tensor, "direction width_out"]:
    return _right(LoraFactors(update.B.T, update.A.T, update.scale))


def _overlap(blocks: Sequence[CapabilityBlock], basis: Basis) -> Overlap:
    names = names_of(blocks)
    values, floors = {}, {}
    for site in sites_of(blocks):
        values[site], floors[site] = _at(blocks, site, basis)
    return Overlap(Pairs(names, _mean(values), values), Pairs(names, _mean(floors), floors))


def _at(
    blocks: Sequence[CapabilityBlock], site: str, basis: Basis
) -> tuple[Float[Tensor, "expert expert"], Float[Tensor, "expert expert"]]:
    here = [(number, basis(block.factors[site])) for number, block in enumerate(blocks) if site in block.factors]
    V = torch.cat([directions for _, directions in here])
    owner = torch.tensor([number for number, directions in here for _ in directions], dtype=torch.long)
    ranks = torch.bincount(owner, minlength=len(blocks)).double()
    shared = sum_by_expert((V @ V.T).square(), owner, len(blocks))
    # An expert without a direction here has rank 0: 0 / 0 says that there is nothing to compare.
    value = (shared / torch.minimum(ranks[:, None], ranks)).clamp(max=1.0)
    floor = torch.maximum(ranks[:, None], ranks) / V.shape[1]
    return value, floor.where(~value.isnan(), torch.nan)


def _mean(by_site: Mapping[str, Float[Tensor, "expert expert"]]) -> Float[Tensor, "expert expert"]:
    return torch.stack(list(by_site.values())).nanmean(dim=0)
