"""Model-based clustering: planted clusters are found, whatever the order, and embeddings are those of the definition."""

import itertools

import numpy as np
import pytest
import torch

from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.library.clustering import ModelBasedClustering

PLANTED = (("law", "tax", "wills"), ("iris", "moss"), ("quark", "star", "sun", "moon"))


def planted(noise: float = 0.6) -> list[CapabilityBlock]:
    """Experts of a cluster are one start plus their own noise; ranks differ, and one site is missing in some."""
    found = []
    for cluster, names in enumerate(PLANTED):
        for number, name in enumerate(names):
            factors = {}
            for place, (site, (width_in, width_out)) in enumerate({"a": (24, 16), "b": (16, 40)}.items()):
                if site == "b" and number == 1:
                    continue
                shared = torch.Generator().manual_seed(100 * cluster + place)
                own = torch.Generator().manual_seed(1000 + 10 * cluster + number + 500 * place)
                A = torch.randn(4, width_in, generator=shared) + noise * torch.randn(4, width_in, generator=own)
                B = torch.randn(width_out, 4, generator=shared) + noise * torch.randn(width_out, 4, generator=own)
                rank = 3 + number % 2
                factors[site] = LoraFactors(A[:rank], B[:, :rank], 1.0 + number)
            found.append(CapabilityBlock(BlockCard(name, "d", "base"), factors))
    return found


def clusters(blocks: list[CapabilityBlock], seed: int = 0, **settings) -> tuple[tuple[str, ...], ...]:
    return ModelBasedClustering(**{"num_clusters": 3} | settings)(blocks, seed=seed)


def reference(blocks: list[CapabilityBlock], components: int, sparsity: float) -> np.ndarray:
    """The definition: flatten, set to zero, SVD, scale to length 1."""
    rows = []
    for block in blocks:
        parts, real = [], []
        for site, (width_in, width_out) in {"a": (24, 16), "b": (16, 40)}.items():
            A, B = torch.zeros(4, width_in, dtype=torch.float64), torch.zeros(width_out, 4, dtype=torch.float64)
            if site in block.factors:
                update = block.factors[site]
                A[: update.rank], B[:, : update.rank] = update.A, update.B
                real += [update.A.flatten(), update.B.flatten()]
            parts += [A.flatten(), B.flatten()]
        row, entries = torch.cat(parts).numpy(), torch.cat(real).double().abs().numpy()
        if sparsity:
            row = np.where(np.abs(row) <= np.quantile(entries, sparsity), 0, row)
        rows.append(row)
    U, S, _ = np.linalg.svd(np.stack(rows), full_matrices=False)
    found = U[:, :components] * S[:components]
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize(("components", "sparsity"), [(64, 0.8), (3, 0.8), (64, 0.0), (2, 0.5)])
def test_embeddings_are_those_of_the_definition(components, sparsity):
    blocks = planted()
    clustering = ModelBasedClustering(num_clusters=3, components=components, sparsity=sparsity)
    found, expected = clustering.embeddings(blocks), reference(blocks, components, sparsity)
    assert found.shape == (9, min(components, 9))
    # Singular vectors have no sign of their own: what they are used for is compared.
    assert np.abs(found @ found.T - expected @ expected.T).max() < 1e-10


def test_planted_clusters_are_found():
    assert clusters(planted()) == tuple(sorted(tuple(sorted(names)) for names in PLANTED))


@pytest.mark.parametrize("noise", [0.6, 3.0, 50.0])
def test_no_other_partition_has_a_lesser_sum_of_squared_distances(noise):
    """All 3025 partitions of nine experts into three; without clusters in the data, too."""
    blocks = planted(noise)
    vectors = reference(blocks, 64, 0.8)
    points, names = vectors @ vectors.T, [block.card.name for block in blocks]

    def spread(labels: tuple[int, ...]) -> float:
        groups = [points[[label == k for label in labels]] for k in range(3)]
        return sum(float(np.square(group - group.mean(axis=0)).sum()) for group in groups)

    found = clusters(blocks)
    ours = spread(tuple(next(k for k, cluster in enumerate(found) if name in cluster) for name in names))
    # The first expert is in cluster 0: other numbers of the clusters are the same partition.
    everything = ((0, *labels) for labels in itertools.product(range(3), repeat=8))
    assert ours == pytest.approx(min(spread(labels) for labels in everything if len(set(labels)) == 3), rel=1e-9)


def test_the_order_of_blocks_is_irrelevant():
    blocks = planted()
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(1)).tolist()
    # Without clusters in the data k-means has many ends, of which the order could choose one.
    noisy = planted(noise=50.0)
    for given in (blocks, noisy):
        assert clusters(given) == clusters([given[number] for number in order]) == clusters(given[::-1])


def test_the_same_seed_gives_the_same_clusters_and_no_other_randomness_is_touched():
    np_state, state = np.random.get_state()[1].copy(), torch.get_rng_state()
    noisy = planted(noise=50.0)
    assert clusters(noisy, seed=3) == clusters(noisy, seed=3)
    assert np.array_equal(np.random.get_state()[1], np_state) and torch.equal(torch.get_rng_state(), state)


def test_every_expert_is_in_one_cluster():
    for number in range(1, 10):
        found = clusters(planted(), num_clusters=number)
        assert len(found) == number
        assert sorted(name for cluster in found for name in cluster) == sorted(b.card.name for b in planted())


def test_settings_that_cannot_be_met_are_refused():
    with pytest.raises(ConfigError, match="num_clusters 10 is more than the 9 different experts"):
        clusters(planted(), num_clusters=10)
    twin = planted()[0]
    twins = [CapabilityBlock(BlockCard(name, "d", "base"), twin.factors) for name in ("x", "y")]
    with pytest.raises(ConfigError, match="num_clusters 2 is more than the 1 different experts"):
        clusters(twins, num_clusters=2)
    for settings, message in (
        ({"num_clusters": 0}, "num_clusters 0 leaves nothing"),
        ({"components": 0}, "components 0 leaves nothing"),
        ({"sparsity": 1.0}, "sparsity 1.0 is no share"),
    ):
        with pytest.raises(ConfigError, match=message):
            clusters(planted(), **settings)
