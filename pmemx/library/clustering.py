"""Model-based clustering (MBC): tasks belong together whose experts look alike (arXiv:2405.11157)."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.cluster.vq import kmeans2, vq

from pmemx.core.block import CapabilityBlock
from pmemx.core.errors import ConfigError
from pmemx.library.pairs import names_of, sites_of

STARTS, ITERATIONS = 10, 100


@dataclass(frozen=True, kw_only=True)
class ModelBasedClustering:
    """k-means on the rows of the cosine similarities of embedded experts, the best of 10 starts by k-means++.

    An expert's embedding: its flattened factors with the share `sparsity` of its entries set to zero that is smallest in
    magnitude, projected on the leading right singular vectors of all experts' rows (`components`, at most as many as
    experts), and scaled to length 1. The vector is that of A and B as they are stored, without scales, as in the public
    code of the paper: experts compare well whose training began with the same A. Where ranks differ, missing rows are zero.
    Singular vectors come from the experts' inner products, so that memory does not grow with experts times entries.
    Raises ConfigError for settings out of range, and for more clusters than there are different experts.
    """

    num_clusters: int
    components: int = 64
    sparsity: float = 0.8

    def __post_init__(self) -> None:
        for name in ("num_clusters", "components"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} leaves nothing; give at least 1")
        if not 0 <= self.sparsity < 1:
            raise ConfigError(
                f"sparsity {self.sparsity} is no share of entries to set to zero; give 0 or more, below 1"
            )

    def __call__(self, blocks: Sequence[CapabilityBlock], *, seed: int) -> tuple[tuple[str, ...], ...]:
        """Names by cluster, sorted within and by the first of each; the order of the blocks is irrelevant."""
        ordered = sorted(blocks, key=lambda block: block.card.name)
        names = names_of(ordered)
        vectors = self.embeddings(ordered)
        points = vectors @ vectors.T
        if self.num_clusters > (different := len(np.unique(points, axis=0))):
            raise ConfigError(
                f"num_clusters {self.num_clusters} is more than the {different} different experts; give fewer"
            )
        labels = _k_means(points, self.num_clusters, np.random.default_rng(seed))
        clusters = [tuple(name for name, label in zip(names, labels, strict=True) if label == k) for k in set(labels)]
        return tuple(sorted(clusters))

    def embeddings(self, blocks: Sequence[CapabilityBlock]) -> Float[np.ndarray, "expert component"]:
        """One row of length 1 an expert, in the order of the blocks; a row of zeros for an expert of zeros."""
        inner = np.zeros((len(blocks), len(blocks)))
        thresholds = [self._threshold(block) for block in blocks]
        for site in sites_of(blocks):
            rows = _rows(blocks, site)
            kept = np.where(np.abs(rows) > np.array(thresholds)[:, None], rows, 0.0)
            inner += kept @ kept.T
        values, vectors = np.linalg.eigh(inner)
        leading = slice(len(blocks) - min(self.components, len(blocks)), None)
        found = vectors[:, leading] * np.sqrt(np.maximum(values[leading], 0.0))
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        return found / np.where(lengths > 0, lengths, 1.0)

    def _threshold(self, block: CapabilityBlock) -> float:
        entries = [_numpy(tensor).ravel() for update in block.factors.values() for tensor in (update.A, update.B)]
        # Without sparsity even the smallest entry stays.
        return float(np.quantile(np.abs(np.concatenate(entries)), self.sparsity)) if self.sparsity else 0.0


def _rows(blocks: Sequence[CapabilityBlock], site: str) -> Float[np.ndarray, "expert entry"]:
    """A and B of the site for every expert, filled up with zeros to the widest rank; zeros where it is not adapted."""
    widest = max((block.factors[site] for block in blocks if site in block.factors), key=lambda update: update.rank)
    A = np.zeros((len(blocks), *widest.A.shape))
    B = np.zeros((len(blocks), *widest.B.shape))
    for number, block in enumerate(blocks):
        if (update := block.factors.get(site)) is not None:
            A[number, : update.rank] = _numpy(update.A)
            B[number, :, : update.rank] = _numpy(update.B)
    return np.concatenate([A.reshape(len(blocks), -1), B.reshape(len(blocks), -1)], axis=1)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def _k_means(points: Float[np.ndarray, "point dimension"], k: int, rng: np.random.Generator) -> list[int]:
    """Labels of the start that ends with the least sum of squared distances."""
    best, labels = np.inf, np.zeros(len(points), dtype=int)
    for _ in range(STARTS):
        with warnings.catch_warnings():
            # A start may leave a cluster empty; one that does not has the lesser sum.
            warnings.filterwarnings("ignore", message="One of the clusters is empty")
            centres, _ = kmeans2(points, k, iter=ITERATIONS, minit="++", rng=rng)
        found, distances = vq(points, centres)
        if (inertia := float(np.square(distances).sum())) < best:
            best, labels = inertia, found
    return labels.tolist()
