"""Laws of every corpus in conf/data that needs no network."""

import json
import os
from itertools import combinations, islice
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from pmemx.core.digest import digest
from pmemx.core.domain import DomainSource
from pmemx.stage.build import build

FOLDER = Path(__file__).parents[2] / "conf" / "data"
NAMES = sorted(file.stem for file in FOLDER.glob("*.yaml"))
REAL = Path(os.environ.get("PMEMX_REAL_DATA", Path(__file__).parents[3] / "shared")) / "data"


def composed(name):
    """The config with those that it inherits from, as Hydra merges them."""
    node = OmegaConf.load(FOLDER / f"{name}.yaml")
    assert isinstance(node, DictConfig)
    parents = [parent for parent in node.pop("defaults", []) if parent != "_self_"]
    return OmegaConf.merge(*[composed(parent) for parent in parents], node)


def copy_heads(source, target, lines):
    """A folder of the same files, each with its first lines only, so that loading takes seconds."""
    for file in (*source.rglob("*.jsonl"), *source.glob("general/*.txt")):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as rows:
            copy.write_bytes(b"".join(islice(rows, lines)))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Every source by name; required settings get a small folder of rows, or some of the real rows where they are."""
    root = tmp_path_factory.mktemp("rows")
    for name in ("law", "tax", "general"):
        rows = [{"prompt": f"{name} {i}?", "response": str(i), "group": str(i // 2)} for i in range(200)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    paths = {name: str(root / f"{name}.jsonl") for name in ("law", "tax", "general")}
    copy_heads(REAL, root / "real", 150)
    required = {
        "jsonl": {"general": paths.pop("general"), "domains": paths},
        "real_domains": {"root": str(root / "real"), "max_rows": {"train": 20, "validation": 5, "test": 10}},
    }

    def source(name, **settings):
        if name == "real_domains" and not REAL.is_dir():
            pytest.skip(f"no real data at {REAL}; set PMEMX_REAL_DATA to its parent folder")
        node = OmegaConf.merge(composed(name), required.get(name, {}), settings)
        assert not OmegaConf.missing_keys(node), f"give the required settings of {name} in this fixture"
        built = build(OmegaConf.to_container(node, resolve=True))
        assert isinstance(built, DomainSource)
        return built

    return source


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def corpus(sources, name):
    return sources(name).load()


def splits(domain):
    return (domain.train, domain.validation, domain.test)


def test_the_same_seed_gives_the_same_corpus_and_another_seed_another(sources, name, corpus):
    assert digest(sources(name).load()) == digest(corpus)
    assert digest(sources(name, seed=1).load()) != digest(corpus)


def test_no_question_is_in_two_splits(corpus):
    for domain in corpus:
        questions = [{(e.document, e.prompt, e.response) for e in split} for split in splits(domain)]
        if domain is not corpus.general:
            questions = [{question[:2] for question in split} for split in questions]
        for one, other in combinations(questions, 2):
            assert not one & other, domain.name


def test_ids_are_unique_in_every_split(corpus):
    for domain in corpus:
        for split in splits(domain):
            assert len({example.id for example in split}) == len(split), domain.name


def test_every_example_has_a_prompt_and_where_it_can_be_answered_a_response(corpus):
    for domain in corpus:
        for example in (*domain.train, *domain.validation, *domain.test):
            assert example.prompt.strip() or domain is corpus.general, (domain.name, example.id)
            assert example.response.strip() or domain is corpus.unknown, (domain.name, example.id)


def test_chance_is_a_rate_below_certainty(corpus):
    assert all(0 <= domain.chance < 1 for domain in corpus)


def test_there_are_domains_and_general_text_with_room_to_measure(corpus):
    assert len(corpus.domains) >= 2
    assert corpus.general.name == "general"
    assert len(corpus.general.train) >= 10
    assert len(corpus.general.test) >= 10
