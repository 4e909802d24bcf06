"""The stage of the library: figures of pairs, clusters that a curriculum takes, and the curriculum itself."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.domain import Domain, Example
from pmemx.core.errors import ConfigError
from pmemx.core.stage import Workspace
from pmemx.library.clustering import ModelBasedClustering
from pmemx.library.similarity import similarity
from pmemx.library.subspace import input_overlap, output_overlap
from pmemx.stage.build import build
from pmemx.stage.curriculum import Clusters, Course
from pmemx.stage.library import LibraryStage
from pmemx.store.governed import GovernedStore

NAMES = ("law", "moss", "tax", "iris", "zero")


def expert(name: str) -> CapabilityBlock:
    """law and tax begin alike, and so do moss and iris; zero has learnt nothing."""
    start = torch.Generator().manual_seed(1 if name in ("law", "tax") else 2)
    own = torch.Generator().manual_seed(10 + NAMES.index(name))
    A = torch.randn(2, 12, generator=start) + 0.3 * torch.randn(2, 12, generator=own)
    B = torch.randn(8, 2, generator=start) + 0.3 * torch.randn(8, 2, generator=own)
    return CapabilityBlock(BlockCard(name, name, "base"), {"a": LoraFactors(A, B * (name != "zero"), 1.0)})


def store(tmp_path: Path, names: tuple[str, ...] = NAMES) -> GovernedStore:
    store = GovernedStore(tmp_path / "bank")
    made = {name: [store.put(expert(name)).digest] for name in names}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "blocks.json").write_text(json.dumps({"experts": made}))
    return store


def run(tmp_path: Path, store: GovernedStore, num_clusters: int = 2) -> tuple[Workspace, dict[str, float]]:
    workspace = Workspace(tmp_path / "run", 5)
    clustering = ModelBasedClustering(num_clusters=num_clusters)
    return workspace, LibraryStage(store=store, clustering=clustering).run(workspace)


def domain(name: str) -> Domain:
    example = Example("1", "p", "r")
    return Domain(name, (example,), (), (example,))


def test_every_pair_with_a_meaning_becomes_a_figure(tmp_path):
    names = NAMES[:4]
    workspace, values = run(tmp_path, store(tmp_path))
    figures, blocks = workspace.ledger.figures, [expert(name) for name in names]
    cosine, reads, writes = similarity(blocks), input_overlap(blocks), output_overlap(blocks)
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    for i, j in pairs:
        pair = f"{names[i]}/{names[j]}"
        assert figures[f"similarity/{pair}"].value == pytest.approx(float(cosine.overall[i, j]), abs=1e-6)
        for side, overlap, width in (("input", reads, 12), ("output", writes, 8)):
            figure = figures[f"overlap/{side}/{pair}"]
            assert figure.value == pytest.approx(float(overlap.value.overall[i, j]), abs=1e-6)
            assert figure.floor == 2 / width
    # The expert that learnt nothing has a direction and a subspace with no one.
    assert len(figures) == 3 * (len(pairs) + 1) + 2 and not any("zero" in name for name in figures)
    assert values["overlap/output/floor"] == figures["overlap/output/floor"].value == 2 / 8
    assert values["similarity/mean"] == pytest.approx(float(torch.stack([cosine.overall[p] for p in pairs]).mean()))
    assert values["clusters"] == 2


def test_clusters_json_says_which_domains_to_train_together(tmp_path):
    held = store(tmp_path, NAMES[:4])
    workspace, _ = run(tmp_path, held)
    found = json.loads((workspace.folder / "clusters.json").read_text())
    assert found["clusters"] == [["iris", "moss"], ["law", "tax"]] and found["seed"] == 5
    assert found["experts"] == {name: held.find(name).digest for name in NAMES[:4]}
    assert found["clustering"]["num_clusters"] == 2
    curriculum = build({"_target_": "pmemx.stage.curriculum.Clusters", "clusters": found["clusters"]})
    assert [course.name for course in curriculum.courses([domain(n) for n in NAMES[:4]])] == ["moss+iris", "law+tax"]


def test_a_second_run_gives_the_same_bytes(tmp_path):
    held = store(tmp_path)
    (one, values), before = run(tmp_path, held), (tmp_path / "run" / "clusters.json").read_bytes
    first = before()
    other, again = run(tmp_path, held)
    assert before() == first and values == again and one.ledger.figures == other.ledger.figures


def test_one_expert_has_no_pairs(tmp_path):
    workspace, values = run(tmp_path, store(tmp_path, ("law",)), num_clusters=1)
    assert workspace.ledger.figures == {} and values == {"clusters": 1.0}
    assert list(workspace.ledger.blocks) == ["law@1"]


def test_the_stage_of_conf_is_built_and_stands_among_those_of_a_run(tmp_path):
    conf = Path(__file__).parents[2] / "conf"
    config = OmegaConf.to_container(OmegaConf.load(conf / "stage" / "library.yaml"))
    found = build(config | {"store": store(tmp_path)})
    assert isinstance(found, LibraryStage) and found.clustering == ModelBasedClustering(num_clusters=2)
    defaults = OmegaConf.load(conf / "run.yaml").defaults
    assert {"stage@stage.library": "library"} in defaults


def test_a_course_a_cluster_the_longest_first_with_domains_in_the_order_of_the_corpus():
    domains = [domain(name) for name in NAMES]
    law, moss, tax, iris, zero = domains
    courses = Clusters((("zero",), ("iris", "law", "tax"), ("moss",))).courses(domains)
    assert courses == (
        Course("law+tax+iris", ((law, tax, iris),)),
        Course("zero", ((zero,),)),
        Course("moss", ((moss,),)),
    )
    (course,) = Clusters((NAMES,)).courses(domains)
    assert (course.name, course.rank_factor) == ("law+moss+3 more", 1)


@pytest.mark.parametrize(
    ("clusters", "message"),
    [
        (
            (("law", "tax"), ("mos", "iris", "zero")),
            "clusters name 'mos', which no domain is called; did you mean 'moss'",
        ),
        ((("law", "tax"), ("iris",)), "clusters leave moss, zero out; give every domain a cluster"),
        ((("law", "tax"), ("law",)), "clusters name 'law' twice"),
        ((("law",), ()), "holds one without a domain"),
    ],
)
def test_clusters_that_are_no_partition_of_the_domains_are_refused(clusters, message):
    with pytest.raises(ConfigError, match=message):
        Clusters(clusters).courses([domain(name) for name in NAMES])
