"""Lineage as a picture: versions in columns from the earliest to the latest, links as curves."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from pmemx.store.lineage import Edge, Lineage, Node

WIDTH, HEIGHT = 176, 44
"""Of the box of a version, in pixels."""
_ACROSS, _GAP, _LANE, _MARGIN = WIDTH + 64, 20, 16, 8
_LONGEST = 21
_Stop = str | tuple[Edge, int]


@dataclass(frozen=True)
class Box:
    """Where a version stands; x and y of its upper left corner. label: its name, cut to fit."""

    node: Node
    x: int
    y: int

    @property
    def label(self) -> str:
        name = self.node.name or "not in this bank"
        return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


@dataclass(frozen=True)
class Curve:
    """A link and the path that draws it."""

    edge: Edge
    path: str


@dataclass(frozen=True)
class Drawing:
    """Boxes and curves, and the size of the picture."""

    boxes: tuple[Box, ...]
    curves: tuple[Curve, ...]
    width: int
    height: int


def draw(lineage: Lineage) -> Drawing:
    """Every version stands to the right of all that it was made from; parents pull their children to their height.

    A link that spans several columns has a lane of its own in those between, so that it runs behind no version.
    """
    columns = _columns(lineage)
    at = {node.key: x for x, column in enumerate(columns) for node in column}
    # A stop of a link: a version by its key, or a place that is kept free for the link in one column.
    ways = [
        [edge.earlier, *((edge, x) for x in range(at[edge.earlier] + 1, at[edge.later])), edge.later]
        for edge in lineage.edges
    ]
    stops: list[list[_Stop]] = [[node.key for node in column] for column in columns]
    earlier: dict[_Stop, list[_Stop]] = {}
    for way in ways:
        for x, stop in enumerate(way[1:-1], at[way[0]] + 1):
            stops[x].append(stop)
        for one, two in pairwise(way):
            earlier.setdefault(two, []).append(one)
    corners: dict[_Stop, tuple[int, int]] = {}
    bottom = 0
    for x, column in enumerate(stops):
        wanted: dict[_Stop, float] = {}
        for stop in column:
            known = [corners[other][1] for other in earlier.get(stop, ()) if other in corners]
            wanted[stop] = sum(known) / len(known) if known else _MARGIN + HEIGHT / 2
        free = _MARGIN
        for stop in sorted(column, key=wanted.__getitem__):
            half = (HEIGHT if isinstance(stop, str) else _LANE) // 2
            middle = max(free + half, round(wanted[stop]))
            corners[stop] = _MARGIN + x * _ACROSS, middle
            free = middle + half + (_GAP if isinstance(stop, str) else 0)
            bottom = max(bottom, middle + half)
    boxes = tuple(Box(node, corners[node.key][0], corners[node.key][1] - HEIGHT // 2) for node in lineage.nodes)
    curves = tuple(
        Curve(edge, _path([corners[stop] for stop in way])) for edge, way in zip(lineage.edges, ways, strict=True)
    )
    width = 2 * _MARGIN + len(stops) * _ACROSS - (_ACROSS - WIDTH)
    return Drawing(boxes, curves, width, bottom + _MARGIN)


def _columns(lineage: Lineage) -> list[list[Node]]:
    """Nodes by the longest way that leads to them. A cycle, which an import out of order can make, is cut where it began."""
    later: dict[str, list[str]] = {node.key: [] for node in lineage.nodes}
    waiting = dict.fromkeys(later, 0)
    for edge in lineage.edges:
        later[edge.earlier].append(edge.later)
        waiting[edge.later] += 1
    depth = dict.fromkeys(later, 0)
    free = deque(key for key, count in waiting.items() if not count)
    placed: set[str] = set()
    while len(placed) < len(depth):
        key = free.popleft() if free else next(key for key in depth if key not in placed)
        if key in placed:
            continue
        placed.add(key)
        for other in later[key]:
            if other not in placed:
                depth[other] = max(depth[other], depth[key] + 1)
                waiting[other] -= 1
                if not waiting[other]:
                    free.append(other)
    columns: list[list[Node]] = [[] for _ in range(1 + max(depth.values(), default=0))]
    for node in lineage.nodes:
        columns[depth[node.key]].append(node)
    return [column for column in columns if column]


def _path(stops: list[tuple[int, int]]) -> str:
    """From the right side of the first box to the left side of the last, straight through the lanes between them."""
    path = ""
    for index, ((from_x, from_y), (to_x, to_y)) in enumerate(pairwise(stops)):
        x = from_x + WIDTH
        bend = max(24, abs(to_x - x) // 2)
        path += f"H{x}" if index else f"M{x} {from_y}"
        path += f"C{x + bend} {from_y} {to_x - bend} {to_y} {to_x} {to_y}"
    return path


def places(figure: Mapping[str, float | None]) -> dict[str, float | None]:
    """Where the parts of a figure stand on its axis, which reaches from the least of them to the greatest; x from 4 to 116."""
    parts = {name: figure[name] for name in ("value", "low", "high", "floor", "ceiling")}
    known = [value for value in parts.values() if value is not None]
    least, greatest = min(known), max(known)
    span = (greatest - least) or 1.0
    return {
        name: None if value is None else round(4 + 112 * (value - least) / span, 1) for name, value in parts.items()
    }
