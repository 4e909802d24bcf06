"""Charts of a study: every method's recovery, recovery against its cost, and both over the size of the bank."""

from collections.abc import Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from pmemx.core.metric import Figure
from pmemx.core.study import StudiedMethod
from pmemx.report.run import label
from pmemx.report.style import BLUE, CYCLE, GREEN, GREY, INK, MARKERS, ORANGE, PURPLE, RED, SKY, canvas, grid, png, svg
from pmemx.report.tables import percent

PALETTE = (GREY, ORANGE, SKY, BLUE, GREEN, PURPLE, RED, "#9c7a3c", "#5f6b76")
LINES = (*CYCLE[:6], "#9c7a3c", "#6a6fc4", "#5f6b76")
MOST_NAMED = len(LINES)
FARTHEST = -0.5
"""Recovery further below stands at the edge with its number: one harmful merge must not squeeze all others."""


def looks(groups: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of every group, by its place."""
    names = list(dict.fromkeys(groups))
    return {name: (PALETTE[k % len(PALETTE)], MARKERS[k % len(MARKERS)]) for k, name in enumerate(names)}


def forest(name: str, methods: Sequence[StudiedMethod]) -> tuple[str, bytes]:
    """One row a method in the order given: recovery with its interval, one small ring a seed; as SVG and PNG."""
    look = looks(method.group for method in methods)
    rows = [(method, method.recovery) for method in sorted(methods, key=_least) if method.recovery is not None]
    with canvas(8.2, 1.0 + 0.235 * len(rows)) as figure:
        axes = figure.add_subplot()
        grid(axes, "x")
        ends = [end for _, found in rows for end in (found.value, found.low, found.high) if end is not None]
        left, right = max(FARTHEST, min([*ends, 0.0])) - 0.05, max([*ends, 1.0]) + 0.04
        axes.set_xlim(left, right)
        for ideal in (0.0, 1.0):
            axes.axvline(ideal, color=INK, linewidth=0.8, alpha=0.5, dashes=(4, 3))
        for y, (method, found) in enumerate(rows):
            colour, marker = look[method.group]
            if found.low is not None and found.high is not None:
                axes.plot([max(left, found.low), max(left, found.high)], [y, y], color=colour, linewidth=2.0)
            if found.value < left:
                axes.plot(left + 0.012, y, "<", color=colour, markersize=6, markeredgewidth=0)
                axes.text(left + 0.03, y, percent(found.value), va="center", fontsize=8)
            else:
                seeds = [value for value in method.by_seed.values() if value >= left]
                if len(method.by_seed) > 1:
                    axes.scatter(
                        seeds, [y] * len(seeds), s=14, facecolor="none", edgecolor=INK, linewidth=0.6, alpha=0.55
                    )
                axes.plot(found.value, y, marker, color=colour, markersize=6, markeredgewidth=0)
            axes.text(1.012, y, percent(found.value), transform=axes.get_yaxis_transform(), va="center", fontsize=8.5)
        axes.set_yticks(range(len(rows)), [label(method.name) for method, _ in rows], fontsize=8.5)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.xaxis.set_major_formatter(lambda value, _: percent(round(value, 3)))
        axes.set_xlabel("recovery (0 base, 100 % right expert)")
        _legend(axes, {group: look[group] for group in look if any(method.group == group for method, _ in rows)})
        return svg(figure, name), png(figure)


def against_cost(name: str, methods: Sequence[StudiedMethod]) -> tuple[str, bytes]:
    """Recovery against multiply-adds per token; named are those that recover more than all that cost no more."""
    look = looks(method.group for method in methods)
    points = [
        (method, method.multiply_adds.mean, method.recovery)
        for method in methods
        if method.multiply_adds is not None and method.recovery is not None
    ]
    with canvas(8.2, 4.6) as figure:
        axes = figure.add_subplot()
        grid(axes, "y")
        costs = [cost for _, cost, _ in points]
        if max(costs) > 6 * min(costs):
            axes.set_xscale("log")
        bottom = max(FARTHEST, min(0.0, *(found.value for _, _, found in points))) - 0.06
        for method, cost, found in points:
            colour, marker = look[method.group]
            y = max(found.value, bottom)
            if found.low is not None and found.high is not None and found.high > bottom:
                axes.plot([cost, cost], [max(found.low, bottom), found.high], color=colour, linewidth=1.1, alpha=0.55)
            axes.plot(
                cost, y, marker if found.value >= bottom else "v", color=colour, markersize=6.5, markeredgewidth=0
            )
        for ideal in (0.0, 1.0):
            axes.axhline(ideal, color=INK, linewidth=0.8, alpha=0.5, dashes=(4, 3))
        axes.set_ylim(bottom - 0.03, max(1.12, *(found.high or found.value for _, _, found in points)) + 0.04)
        axes.margins(x=0.08)
        axes.autoscale_view(scaley=False)
        _name_best(axes, points)
        axes.yaxis.set_major_formatter(lambda value, _: percent(round(value, 3)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.set_xlabel("multiply-adds per token, base = 1×")
        axes.set_ylabel("recovery")
        _legend(axes, {group: look[group] for group in look if any(method.group == group for method, _, _ in points)})
        return svg(figure, name), png(figure)


def frontier(points: Sequence[tuple[StudiedMethod, float, Figure]], step: float = 0.01) -> list[StudiedMethod]:
    """Methods that recover at least `step` more than every method of at most their cost, cheapest first."""
    best: list[tuple[StudiedMethod, float]] = []
    for method, _, found in sorted(points, key=lambda point: (point[1], -point[2].value, point[0].name)):
        if not best or found.value >= best[-1][1] + step:
            best.append((method, found.value))
    return [method for method, _ in best]


def _name_best(axes: Axes, points: Sequence[tuple[StudiedMethod, float, Figure]]) -> None:
    """Names beside the marks of the frontier, where they cover least: other marks, and names set before."""
    named = {method.name for method in frontier(points)}
    taken = [(*axes.transData.transform((cost, found.value)), 4.0, 4.0) for _, cost, found in points]
    left, right = (axes.transAxes.transform((end, 0))[0] for end in (0, 1))
    for method, cost, found in points:
        if method.name not in named:
            continue
        x, y = axes.transData.transform((cost, found.value))
        half = (3.8 * len(label(method.name)), 7.0)
        centres = [
            (x + side * (half[0] + 9), y + up)
            for up in (0, 14, -14, 28, -28, 42, -42, 56, -56)
            for side in (1, 0, -1)
            if (side or up) and left < x + side * (half[0] + 9) - half[0] and x + side * (half[0] + 9) + half[0] < right
        ]
        place = min(centres, key=lambda centre: (_covered((*centre, *half), taken), centres.index(centre)))
        taken.append((*place, *half))
        along, up = axes.transData.inverted().transform(place)
        axes.annotate(
            label(method.name),
            (cost, found.value),
            xytext=(along, up),
            ha="center",
            va="center",
            fontsize=8.5,
            fontweight="bold",
            arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.5, "alpha": 0.6, "shrinkA": 0, "shrinkB": 3},
        )


def _covered(box: tuple[float, float, float, float], others: Sequence[tuple[float, float, float, float]]) -> int:
    """How many boxes, by centre and half sizes, a box touches."""
    return sum(1 for o in others if abs(box[0] - o[0]) < box[2] + o[2] and abs(box[1] - o[1]) < box[3] + o[3])


def growth(
    name: str, panels: Mapping[str, Mapping[str, Mapping[int, Figure]]], *, axis: str, lowest: float
) -> tuple[str, bytes]:
    """One panel a group, one line a method with its intervals over the number of experts.

    Named are the MOST_NAMED highest of a panel at its largest size; the others are grey. Values below `lowest` leave the panel.
    """
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    sizes = sorted({size for panel in panels.values() for line in panel.values() for size in line})
    ends = [
        f.value if f.high is None else f.high for panel in panels.values() for p in panel.values() for f in p.values()
    ]
    lows = [
        f.value if f.low is None else f.low for panel in panels.values() for p in panel.values() for f in p.values()
    ]
    bottom, top = max(lowest, min(0.0, *lows)) - 0.03, max(1.0, *ends) + 0.05
    with canvas(4.6 * columns, 2.75 * rows) as figure:
        axes_of = figure.subplots(
            rows, columns, squeeze=False, gridspec_kw={"wspace": 1.05, "hspace": 0.42, "right": 0.8}
        ).ravel()
        for axes, (title, panel) in zip(axes_of, panels.items(), strict=False):
            grid(axes, "y")
            axes.set_title(title)
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.set_xticks([], minor=True)
            axes.set_xlim(sizes[0] / 1.12, sizes[-1] * 1.12)
            axes.set_ylim(bottom, top)
            axes.yaxis.set_major_formatter(lambda value, _: percent(round(value, 3)))
            axes.set_xlabel("experts in the bank")
            ordered = sorted(panel.items(), key=lambda item: -item[1][max(item[1])].value)
            for _, points in ordered[MOST_NAMED:]:
                sizes_of = sorted(points)
                axes.plot(sizes_of, [points[size].value for size in sizes_of], color=GREY, linewidth=0.9, alpha=0.5)
            labels: list[tuple[float, str, str]] = []
            for k, (method, points) in enumerate(ordered[:MOST_NAMED]):
                labels.append((_line(axes, points, k, min(MOST_NAMED, len(ordered))), _short(method), LINES[k]))
            _end_labels(axes, labels)
        for axes in axes_of[::columns]:
            axes.set_ylabel(axis)
        for axes in axes_of[len(panels) :]:
            axes.set_visible(False)
        return svg(figure, name), png(figure)


def _line(axes: Axes, points: Mapping[int, Figure], k: int, lines: int) -> float:
    """Draw one line, shifted a little so that intervals of a panel do not hide one another; gives its last value."""
    shift = 2 ** (0.16 * (k - (lines - 1) / 2) / max(1, lines - 1))
    found = [(size * shift, points[size]) for size in sorted(points)]
    style = {"color": LINES[k], "marker": MARKERS[k % len(MARKERS)], "markersize": 4.5, "markeredgewidth": 0}
    axes.plot([x for x, _ in found], [f.value for _, f in found], linewidth=1.6, **style)
    for x, f in found:
        if f.low is not None and f.high is not None:
            axes.plot([x, x], [f.low, f.high], color=LINES[k], linewidth=1.0, alpha=0.6)
    return found[-1][1].value


def _short(method: str) -> str:
    """A method's name without what the panel's title says, cut where it would run into the next panel."""
    word = label(method.rpartition("/")[2])
    return word if len(word) <= 23 else f"{word[:22]}…"


def _end_labels(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Names right of the panel, highest first, pushed apart from above and then, where they leave the panel, from below."""
    low, high = axes.get_ylim()
    apart, heights = (high - low) * 0.088, [min(max(value, low), high) for value, _, _ in labels]
    for k in range(1, len(heights)):
        heights[k] = min(heights[k], heights[k - 1] - apart)
    floor = low
    for k in reversed(range(len(heights))):
        heights[k] = max(heights[k], floor)
        floor = heights[k] + apart
    for y, (_, word, colour) in zip(heights, labels, strict=True):
        axes.text(
            1.02,
            y,
            word,
            transform=axes.get_yaxis_transform(),
            va="center",
            color=colour,
            fontsize=8,
            fontweight="bold",
        )


def _least(method: StudiedMethod) -> float:
    return 0.0 if method.recovery is None else -method.recovery.value


def _legend(axes: Axes, look: Mapping[str, tuple[str, str]]) -> None:
    handles = [
        Line2D([], [], color=colour, marker=marker, linewidth=0, markersize=6, markeredgewidth=0, label=group)
        for group, (colour, marker) in look.items()
    ]
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=3,
        borderaxespad=0.3,
        handletextpad=0.2,
        columnspacing=1.2,
        fontsize=8.5,
    )
