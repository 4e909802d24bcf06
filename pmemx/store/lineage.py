"""Where a version comes from and what was made from it, as a graph of versions."""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from pmemx.store import catalogue
from pmemx.store.bank import Bank
from pmemx.store.catalogue import Found
from pmemx.store.ledger import Transaction


class Link(StrEnum):
    """Why a version follows another: it was made from it, restores it, or is simply the next of its name."""

    MADE_FROM = "made from"
    RESTORES = "restores"
    FOLLOWS = "follows"


@dataclass(frozen=True)
class Node:
    """A version in the graph; name is empty for a parent that this bank does not hold, or that may not be read."""

    digest: str
    name: str
    number: int

    @property
    def key(self) -> str:
        """What tells it from every other node: a rollback has the digest of an earlier version."""
        return f"{self.name}@{self.number}" if self.name else self.digest


@dataclass(frozen=True)
class Edge:
    """From an earlier node to a later one, by their keys."""

    earlier: str
    later: str
    link: Link


@dataclass(frozen=True)
class Lineage:
    """Nodes, nearest first, and the edges between them."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


def lineage(bank: Bank, reference: str, *, steps: int = 8, limit: int = 200) -> Lineage:
    """The versions within so many steps of one, at most `limit` of them. What the principal may not read has no name."""
    with bank.ledger.reading() as now:
        return lineage_of(now, catalogue.resolve(now, reference), steps=steps, limit=limit)


def lineage_of(now: Transaction, start: Found, *, steps: int = 8, limit: int = 200) -> Lineage:
    """The same for a version that was found."""
    nodes: dict[str, Node] = {}
    edges: dict[Edge, None] = {}
    queue = deque([(start, 0)])
    nodes[_node(start).key] = _node(start)
    while queue:
        found, distance = queue.popleft()
        for other, node, edge in _neighbours(now, found):
            if node.key not in nodes and len(nodes) >= limit:
                continue
            edges[edge] = None
            if node.key not in nodes:
                nodes[node.key] = node
                if other is not None and distance + 1 < steps:
                    queue.append((other, distance + 1))
    return Lineage(tuple(nodes.values()), tuple(edges))


def _neighbours(now: Transaction, found: Found) -> list[tuple[Found | None, Node, Edge]]:
    own, version = _node(found), found.version
    near: list[tuple[Found | None, Node, Edge]] = []
    for digest in version.card.parents:
        held = catalogue.with_digest(now, digest)
        parent = held[0] if held else None
        node = _node(parent) if parent else Node(digest, "", 0)
        near.append((parent, node, Edge(node.key, own.key, Link.MADE_FROM)))
    for child in catalogue.descendants(now, version.digest):
        near.append((child, _node(child), Edge(own.key, _node(child).key, Link.MADE_FROM)))
    for other in catalogue.versions_of(now, found.block):
        if _before(other) == version.number:
            near.append((other, _node(other), Edge(own.key, _node(other).key, _link(other))))
        elif _before(found) == other.version.number:
            near.append((other, _node(other), Edge(_node(other).key, own.key, _link(found))))
    return near


def _before(found: Found) -> int | None:
    """The number of the version of its name that a version restores or follows."""
    number = found.version.number
    return found.version.restores or (number - 1 if number > 1 else None)


def _link(found: Found) -> Link:
    return Link.FOLLOWS if found.version.restores is None else Link.RESTORES


def _node(found: Found) -> Node:
    return Node(
        found.version.digest, catalogue.full_name(found.version.namespace, found.version.name), found.version.number
    )
