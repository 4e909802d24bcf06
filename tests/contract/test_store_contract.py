"""Every conf/store/*.yaml builds a store that keeps versions, tags and history, and notices what it does not hold."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.errors import IncompatibleBlock, UnknownBlock
from pmemx.core.store import Store
from tests.store.postgres import database, postgres

__all__ = ["database", "postgres"]  # fixtures

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(params=sorted(path.stem for path in (CONF / "store").glob("*.yaml")))
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if "PMEMX_DATABASE" in (CONF / "store" / f"{request.param}.yaml").read_text(encoding="utf-8"):
        monkeypatch.setenv("PMEMX_DATABASE", request.getfixturevalue("database"))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=[f"+store={request.param}", f"store.path='{tmp_path / 'bank'}'"])
    return instantiate(config.store)


def block(name: str, fill: float) -> CapabilityBlock:
    factors = {"model.layers.0.q_proj": LoraFactors(torch.full((2, 3), fill), torch.full((4, 2), fill), 0.1 + 0.2)}
    return CapabilityBlock(BlockCard(name, "domain", "b" * 64, metrics={"exact": 0.5}), factors)


def test_it_is_a_store_and_starts_empty(store: Store) -> None:
    assert isinstance(store, Store)
    assert (store.names(), store.verify()) == ((), ())


def test_a_block_comes_back_bit_for_bit(store: Store) -> None:
    store.put(block("law", 1.5))
    got, expected = store.get("law"), block("law", 1.5)
    assert got.card == expected.card
    (factors,), (wanted,) = got.factors.values(), expected.factors.values()
    assert factors.scale == wanted.scale
    assert torch.equal(factors.A, wanted.A)
    assert torch.equal(factors.B, wanted.B)
    assert store.verify() == ()


def test_versions_tags_history_and_rollback(store: Store) -> None:
    first, second = store.put(block("law", 1.0)), store.put(block("law", 2.0))
    assert store.put(block("law", 2.0)) == second
    assert store.tag("law@1", "stable") == first
    assert store.tags("law") == {"stable": 1}
    assert store.find("law") == second
    assert store.find("law@stable") == store.find("law@1") == store.find(first.digest) == first
    third = store.rollback("law", 1)
    assert (third.number, third.digest) == (3, first.digest)
    assert store.history("law") == (first, second, third)
    assert replace(third, number=1, restores=None) == first


def test_names_are_free_text_and_sorted(store: Store) -> None:
    names = ("../x", "0", "law", "☃ é")
    for name in reversed(names):
        store.put(block(name, 1.0))
    assert store.names() == tuple(sorted(names))


def test_what_is_unknown_or_of_another_base_is_an_error(store: Store) -> None:
    store.put(block("law", 1.0))
    for reference in ("lwa", "law@2", "law@none", "0" * 64):
        with pytest.raises(UnknownBlock):
            store.get(reference)
    with pytest.raises(IncompatibleBlock):
        store.get("law", base="c" * 64)
