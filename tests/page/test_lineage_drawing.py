"""Pictures of lineages: where versions stand, and that a picture is drawn of any graph."""

from hypothesis import given
from hypothesis import strategies as st

from pmemx.page.drawing import HEIGHT, WIDTH, draw, places
from pmemx.store.lineage import Edge, Lineage, Link, Node


def graph(size: int, pairs: list[tuple[int, int]]) -> Lineage:
    nodes = tuple(Node(f"{k:064x}", f"block {k}", 1) for k in range(size))
    edges = dict.fromkeys(
        Edge(nodes[one].key, nodes[two].key, Link.MADE_FROM)
        for one, two in pairs
        if one != two and max(one, two) < size
    )
    return Lineage(nodes, tuple(edges))


SIZES = st.integers(1, 12)
PAIRS = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=30)


@given(SIZES, PAIRS)
def test_a_version_stands_to_the_right_of_all_that_it_comes_from(size: int, pairs: list[tuple[int, int]]):
    lineage = graph(size, [(min(pair), max(pair)) for pair in pairs])
    at = {box.node.key: box.x for box in draw(lineage).boxes}
    assert all(at[edge.earlier] < at[edge.later] for edge in lineage.edges)


@given(SIZES, PAIRS)
def test_any_graph_is_drawn_whole_inside_the_picture_and_no_two_versions_overlap(
    size: int, pairs: list[tuple[int, int]]
):
    lineage = graph(size, pairs)
    drawing = draw(lineage)
    assert {box.node for box in drawing.boxes} == set(lineage.nodes)
    assert [curve.edge for curve in drawing.curves] == list(lineage.edges)
    corners = [(box.x, box.y) for box in drawing.boxes]
    assert all(0 <= x <= drawing.width - WIDTH and 0 <= y <= drawing.height - HEIGHT for x, y in corners)
    assert all(
        abs(x - other_x) >= WIDTH or abs(y - other_y) >= HEIGHT
        for k, (x, y) in enumerate(corners)
        for other_x, other_y in corners[:k]
    )


def test_a_chain_of_three_by_hand():
    drawing = draw(graph(3, [(0, 1), (1, 2)]))
    assert [(box.x, box.y) for box in drawing.boxes] == [(8, 8), (248, 8), (488, 8)]
    assert drawing.curves[0].path == "M184 30C216 30 216 30 248 30"
    assert (drawing.width, drawing.height) == (8 + 2 * 240 + 176 + 8, 60)


def test_a_link_over_a_column_runs_beside_the_version_in_between():
    drawing = draw(graph(3, [(0, 1), (1, 2), (0, 2)]))
    assert [(box.x, box.y) for box in drawing.boxes] == [(8, 8), (248, 8), (488, 33)]
    assert drawing.curves[2].path == "M184 30C216 30 216 80 248 80H424C456 80 456 55 488 55"
    assert drawing.height == 8 + 44 + 20 + 16 + 8


def test_long_names_are_cut():
    (box,) = draw(Lineage((Node("a" * 64, "x" * 300, 1),), ())).boxes
    assert box.label == "x" * 20 + "…"


def test_a_figure_on_its_axis_by_hand():
    figure = {"value": 1.0, "low": 0.5, "high": 2.0, "floor": 0.0, "ceiling": None, "n": 3}
    assert places(figure) == {"value": 60.0, "low": 32.0, "high": 116.0, "floor": 4.0, "ceiling": None}


def test_a_figure_without_an_interval_has_a_place():
    assert places(dict.fromkeys(("low", "high", "floor", "ceiling")) | {"value": 3.0})["value"] == 4.0
