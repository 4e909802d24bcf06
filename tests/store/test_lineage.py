"""Lineage: the graph of versions up and down, bounded, and without the names of what may not be read."""

from dataclasses import replace
from pathlib import Path

import pytest

from pmemx.store.governed import GovernedStore
from pmemx.store.lineage import Edge, Link, lineage
from pmemx.store.members import Members, Role
from tests.store.banks import Hands, opened, put


@pytest.fixture
def store(tmp_path: Path) -> GovernedStore:
    return opened(tmp_path, Hands())


def test_a_graph_by_hand(store: GovernedStore) -> None:
    one, two = put(store, "one", 1.0), put(store, "two", 2.0)
    put(store, "sum", 3.0, parents=(one.digest, two.digest, "e" * 64))
    put(store, "sum", 4.0)
    store.rollback("sum", 1)
    last = put(store, "copy", 5.0, parents=(one.digest,))
    graph = lineage(store.bank, "sum@1")
    assert {node.key for node in graph.nodes} == {"one@1", "two@1", "e" * 64, "sum@1", "sum@2", "sum@3", "copy@1"}
    assert set(graph.edges) == {
        Edge("one@1", "sum@1", Link.MADE_FROM),
        Edge("two@1", "sum@1", Link.MADE_FROM),
        Edge("e" * 64, "sum@1", Link.MADE_FROM),
        Edge("one@1", "copy@1", Link.MADE_FROM),
        Edge("one@1", "sum@3", Link.MADE_FROM),
        Edge("two@1", "sum@3", Link.MADE_FROM),
        Edge("e" * 64, "sum@3", Link.MADE_FROM),
        Edge("sum@1", "sum@2", Link.FOLLOWS),
        Edge("sum@1", "sum@3", Link.RESTORES),
    }
    assert len(graph.edges) == len(set(graph.edges))
    assert last.digest in {node.digest for node in graph.nodes}


def test_rollbacks_and_successors_are_links(store: GovernedStore) -> None:
    put(store, "law", 1.0)
    put(store, "law", 2.0)
    store.rollback("law", 1)
    graph = lineage(store.bank, "law")
    expected = {Edge("law@1", "law@3", Link.RESTORES), Edge("law@1", "law@2", Link.FOLLOWS)}
    assert set(graph.edges) == set(lineage(store.bank, "law@2").edges) == expected


def test_the_graph_is_bounded(store: GovernedStore) -> None:
    parent = put(store, "root", 0.0)
    for number in range(12):
        parent = put(store, f"step {number}", float(number + 1), parents=(parent.digest,))
    assert len(lineage(store.bank, "root", steps=3).nodes) == 4
    assert len(lineage(store.bank, "root", steps=99, limit=5).nodes) == 5
    assert len(lineage(store.bank, "root", steps=99).nodes) == 13


def test_what_may_not_be_read_has_no_name_in_it(store: GovernedStore) -> None:
    hidden = put(replace(store, namespace="team:legal"), "hidden", 1.0)
    put(store, "open", 2.0, parents=(hidden.digest,))
    child = put(replace(store, namespace="team:legal"), "child", 3.0, parents=(store.find("open").digest,))
    Members(store.bank).enrol("root", role=Role.OWNER)
    Members(store.bank).enrol("eve", role=Role.READER, scope="shared")
    graph = lineage(replace(store.bank, principal="eve"), "open")
    assert {node.key for node in graph.nodes} == {"open@1", hidden.digest}
    assert child.digest not in {node.digest for node in graph.nodes}
