"""LoRA-LEGO: rank-one units of all experts in clusters, whose centroids make the merge (arXiv:2409.16167)."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.cluster.vq import kmeans2
from torch import Tensor

from pmemx.core.block import LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.core.low_rank import Cut, energy, factored
from pmemx.core.merge import Experts, Merge

ITERATIONS = 10


@dataclass(frozen=True, kw_only=True)
class Lego(Merge):
    """sqrt(r / K) sum_k c_k^2 b_k a_k^T over K clusters of units (a, b): a row of an A beside the column of its B.

    (a_k, b_k) is the mean of a cluster's units, and c_k brings its largest magnitude back to the mean of theirs, since
    a mean is smaller than what it is of; sqrt(r / K) keeps the variance of outputs that of r units. r is the mean
    number of units of the experts that have any at the site. clusters: K, at most the number of units; "largest": what
    the widest expert has anywhere.

    Units are clustered by direction, with a and b each of norm 1: k-means++ and ten steps of k-means. Scale and weight
    enter by their root on either side, which the paper, where both are equal, does not need. The result depends on how
    factors are written: (c a, b / c) is the same update, but another unit. Clustering is no cut: lost_energy is 0.
    """

    clusters: int | Literal["largest"] = "largest"

    def __post_init__(self) -> None:
        if self.clusters != "largest" and (type(self.clusters) is not int or self.clusters < 1):
            raise ConfigError(f"clusters {self.clusters!r} is no number of units; give 1 or more, or 'largest'")

    def merged_sites(self, experts: Experts, generator: torch.Generator) -> dict[str, Cut]:
        """See Merge.merged_sites."""
        cuts = {}
        for site in experts.sites:
            factors = _merged(experts, site, int(experts.limit(self.clusters, site)), generator)
            cuts[site] = Cut(factors, 0.0, energy(factors))
        return cuts


def _merged(experts: Experts, site: str, clusters: int, generator: torch.Generator) -> LoraFactors:
    _, updates, weights = zip(*experts.at(site), strict=True)
    pairs = [_units(update, weight) for update, weight in zip(updates, weights, strict=True)]
    a, b = torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])
    dtype = updates[0].A.dtype
    if not len(a):
        return factored(b.T, a, 1.0, dtype)
    labels = _clustered(torch.cat([_unit_norm(a), _unit_norm(b)], dim=1), clusters, generator)
    units = torch.cat([a, b], dim=1)
    centroids = torch.stack([_centroid(units[labels == label]) for label in labels.unique()])
    A, B = centroids.split([a.shape[1], b.shape[1]], dim=1)
    mean_rank = len(units) / sum(len(a) > 0 for a, _ in pairs)
    return factored(math.sqrt(mean_rank / len(centroids)) * B.T, A, 1.0, dtype)


def _units(
    update: LoraFactors, weight: float
) -> tuple[Float[Tensor, "unit width_in"], Float[Tensor, "unit width_out"]]:
    """Rows of A and columns of B in float64, but for those whose product is zero: they have no direction."""
    folded = weight * update.scale
    root = math.sqrt(abs(folded))
    # A negative weight keeps its sign on one side only.
    a, b = root * update.A.double(), math.copysign(root, folded) * update.B.double().T
    moving = a.any(dim=1) & b.any(dim=1)
    return a[moving], b[moving]


def _unit_norm(vectors: Float[Tensor, "unit width"]) -> Float[Tensor, "unit width"]:
    return vectors / vectors.norm(dim=1, keepdim=True)


def _clustered(points: Float[Tensor, "unit width"], clusters: int, generator: torch.Generator) -> Int[Tensor, " unit"]:
    """A label for every unit; each is a cluster of its own where there are no more units than clusters."""
    if len(points) <= clusters:
        return torch.arange(len(points))
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    # k-means++ has no further point to choose when all distinct ones are centroids.
    distinct = min(clusters, len(points.unique(dim=0)))
    _, labels = kmeans2(points.numpy(), distinct, ITERATIONS, minit="++", rng=np.random.default_rng(seed))
    return torch.from_numpy(labels).long()


def _centroid(units: Float[Tensor, "unit width"]) -> Float[Tensor, " width"]:
    """The mean, rescaled to the mean largest magnitude of the units; zero where they cancel."""
    mean = units.mean(dim=0)
    largest = mean.abs().amax()
    return mean * (units.abs().amax(dim=1).mean() / largest) if largest else mean
