"""Stage: look at the experts of this run as a library: how alike they are, what they share, which tasks belong together."""

import json
import math
from dataclasses import dataclass
from itertools import combinations

from pmemx.core.atomic import write_whole
from pmemx.core.canonical import plain
from pmemx.core.metric import Figure
from pmemx.core.stage import Stage, Workspace
from pmemx.core.store import Store
from pmemx.library.clustering import ModelBasedClustering
from pmemx.library.pairs import Pairs
from pmemx.library.similarity import similarity
from pmemx.library.subspace import Overlap, input_overlap, output_overlap
from pmemx.stage.bank import course_digests

CLUSTERS = "clusters.json"
HEADLINES = (
    "similarity/mean",
    *(f"overlap/{side}/{what}" for side in ("input", "output") for what in ("mean", "floor")),
)


@dataclass(frozen=True, kw_only=True)
class LibraryStage(Stage):
    """Reads the factors alone: neither the base model nor data. Bit-equal when it is run again."""

    store: Store
    clustering: ModelBasedClustering

    def run(self, workspace: Workspace) -> dict[str, float]:
        """Figures of every pair of experts, in the order of the corpus; a number without a meaning is left out.

        similarity/<a>/<b>: cosine of the updates. overlap/input/<a>/<b>, overlap/output/<a>/<b>: of the subspaces that they
        read and write, with chance as floor. The means over all pairs end in /mean, and those of the floors in /floor.
        clusters.json holds the clusters, as stage.distill.curricula takes them, with what found them and in which versions.
        """
        digests = {name: versions[-1] for name, versions in course_digests(workspace.folder, "experts").items()}
        blocks = [self.store.get(digest) for digest in digests.values()]
        with workspace.progress("Compare", total=4) as advance:
            figures = _figures("similarity", similarity(blocks))
            advance(1, "updates")
            figures |= _overlaps("overlap/input", input_overlap(blocks))
            advance(1, "inputs")
            figures |= _overlaps("overlap/output", output_overlap(blocks))
            advance(1, "outputs")
            clusters = self.clustering(blocks, seed=workspace.seed)
            advance(1, "clusters")
        found = {
            "clusters": clusters,
            "clustering": self.clustering,
            "seed": workspace.seed,
            "experts": digests,
        }
        text = json.dumps(plain(found), indent=1, ensure_ascii=False)
        write_whole(workspace.folder / CLUSTERS, text.encode())
        workspace.ledger.figures |= figures
        for digest in digests.values():
            workspace.ledger.add(self.store.find(digest))
        headlines = {name: figures[name].value for name in HEADLINES if name in figures}
        return headlines | {"clusters": float(len(clusters))}


def _figures(prefix: str, pairs: Pairs, floor: Pairs | None = None) -> dict[str, Figure]:
    figures = {}
    for (one, first), (other, second) in combinations(enumerate(pairs.names), 2):
        value = float(pairs.overall[one, other])
        if not math.isnan(value):
            chance = None if floor is None else float(floor.overall[one, other])
            figures[f"{prefix}/{first}/{second}"] = Figure(value, floor=chance)
    if not figures:
        return {}
    mean = sum(figure.value for figure in figures.values()) / len(figures)
    chances = [figure.floor for figure in figures.values() if figure.floor is not None]
    chance = sum(chances) / len(chances) if chances else None
    return figures | {f"{prefix}/mean": Figure(mean, floor=chance)}


def _overlaps(prefix: str, overlap: Overlap) -> dict[str, Figure]:
    figures = _figures(prefix, overlap.value, overlap.floor)
    mean = figures.get(f"{prefix}/mean")
    if mean is None or mean.floor is None:
        return figures
    return figures | {f"{prefix}/floor": Figure(mean.floor)}
