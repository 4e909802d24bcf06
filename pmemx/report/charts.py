"""Charts of points with intervals, lines over growth, and training curves."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from pmemx.core.metric import Figure
from pmemx.core.record import CurvePoint
from pmemx.report.run import label
from pmemx.report.style import CYCLE, INK, canvas, grid, of_method, svg
from pmemx.report.tables import number, percent


def bars(
    name: str,
    figures: Mapping[str, Figure],
    *,
    axis: str,
    dots: Mapping[str, Sequence[float]],
    ideal: float | None = None,
) -> str:
    """One horizontal bar a method with its interval, its value at the right; dots show the parts that make it up."""
    methods = list(figures)
    with canvas(8.2, 0.75 + 0.36 * len(methods)) as figure:
        axes = figure.add_subplot()
        grid(axes, "x")
        if ideal is not None:
            axes.axvline(ideal, color=INK, linewidth=0.8, alpha=0.5, dashes=(4, 3))
        for y, method in enumerate(methods):
            found, (colour, _) = figures[method], of_method(method, y)
            axes.barh(y, found.value, height=0.62, color=colour, alpha=0.85, linewidth=0)
            spots = dots.get(method, ())
            axes.scatter(spots, [y] * len(spots), s=11, facecolor="none", edgecolor=INK, linewidth=0.7, alpha=0.55)
            _whisker(axes, found, y)
        _values_at_right(axes, [number(found.value) for found in figures.values()])
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(methods)), [label(method) for method in methods])
        axes.set_ylim(len(methods) - 0.4, -0.6)
        axes.set_xlabel(axis)
        return svg(figure, name)


def _whisker(axes: Axes, found: Figure, y: float) -> None:
    if found.low is not None and found.high is not None:
        axes.plot([found.low, found.high], [y, y], color=INK, linewidth=1.3, solid_capstyle="butt")
        for end in (found.low, found.high):
            axes.plot([end, end], [y - 0.13, y + 0.13], color=INK, linewidth=1.3)


def _values_at_right(axes: Axes, words: Sequence[str]) -> None:
    for y, word in enumerate(words):
        axes.text(1.015, y, word, transform=axes.get_yaxis_transform(), va="center", fontweight="bold")


def ladder(
    name: str, rows: Sequence[str], series: Mapping[str, Mapping[str, Figure]], *, axis: str, gap_before: str | None
) -> str:
    """One row a form, one mark a method with its interval; rows from `gap_before` on are set apart."""
    split = rows.index(gap_before) if gap_before in rows else len(rows)
    heights = {row: y + (0.5 if y >= split else 0.0) for y, row in enumerate(rows)}
    with canvas(8.2, 1.1 + 0.42 * len(rows)) as figure:
        axes = figure.add_subplot()
        grid(axes, "x")
        for k, (method, figures) in enumerate(series.items()):
            colour, marker = of_method(method, k)
            offset = 0.16 * (k - (len(series) - 1) / 2)
            for row, found in figures.items():
                y = heights[row] + offset
                if found.low is not None and found.high is not None:
                    axes.plot([found.low, found.high], [y, y], color=colour, linewidth=1.4)
            axes.plot(
                [found.value for found in figures.values()],
                [heights[row] + offset for row in figures],
                marker,
                color=colour,
                markersize=5.5,
                markeredgewidth=0,
                label=label(method),
            )
        axes.set_yticks(list(heights.values()), list(heights))
        axes.set_ylim(max(heights.values()) + 0.6, -0.6)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel(axis)
        axes.xaxis.set_major_formatter(lambda value, _: percent(round(value, 3)))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(series), borderaxespad=0.2, handletextpad=0.3)
        return svg(figure, name)


def lines(name: str, series: Mapping[str, Mapping[int, Figure]], names: Sequence[str], *, axis: str) -> str:
    """One line a run over the stages of growth with a band of its interval, labelled at its end."""
    with canvas(8.2, 3.5) as figure:
        axes = figure.add_subplot()
        grid(axes, "y")
        ends: list[tuple[float, str, str]] = []
        for k, (run, points) in enumerate(series.items()):
            colour, marker = of_method(run, k)
            stages = sorted(points)
            values = [points[stage].value for stage in stages]
            axes.plot(stages, values, color=colour, marker=marker, markersize=5, linewidth=2, markeredgewidth=0)
            lows = [f.value if f.low is None else f.low for f in (points[stage] for stage in stages)]
            highs = [f.value if f.high is None else f.high for f in (points[stage] for stage in stages)]
            axes.fill_between(stages, lows, highs, color=colour, alpha=0.16, linewidth=0)
            ends.append((values[-1], label(run), colour))
        axes.set_xticks(range(1, len(names) + 1), [f"{i} {name}" for i, name in enumerate(names, 1)])
        axes.tick_params(axis="x", labelrotation=38)
        for tick in axes.get_xticklabels():
            tick.set_horizontalalignment("right")
            tick.set_rotation_mode("anchor")
        axes.set_ylabel(axis)
        low, high = axes.get_ylim()
        axes.set_ylim(min(0.0, low), high)
        _end_labels(axes, ends, len(names))
        return svg(figure, name)


def _end_labels(axes: Axes, ends: list[tuple[float, str, str]], last: int) -> None:
    """Names at the ends of lines, pushed apart where lines meet."""
    low, high = axes.get_ylim()
    apart, below = (high - low) * 0.075, -math.inf
    for value, word, colour in sorted(ends):
        y = max(value, below + apart)
        below = y
        axes.annotate(
            word,
            (last, value),
            (last + 0.03 * last + 0.1, y),
            va="center",
            color=colour,
            fontweight="bold",
            annotation_clip=False,
        )


def curves(name: str, panels: Mapping[str, Mapping[str, Sequence[CurvePoint]]], *, axis: str) -> str:
    """Small multiples: one panel a training, one line a measured name; panels share no scale with other units."""
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    names = list(dict.fromkeys(line for panel in panels.values() for line in panel))
    with canvas(2.15 * columns + 0.5, 1.55 * rows + 0.6) as figure:
        grid_of_axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
        for axes, (title, panel) in zip(grid_of_axes, panels.items(), strict=False):
            grid(axes, "y")
            axes.set_title(title if len(title) < 24 else title[:22] + "…", fontsize=9)
            for line, points in panel.items():
                style = CYCLE[names.index(line) % len(CYCLE)]
                axes.plot([p.step for p in points], [p.value for p in points], color=style, linewidth=1.5, label=line)
            axes.tick_params(labelsize=8)
            axes.margins(x=0.02)
            axes.locator_params(axis="both", nbins=4)
        for axes in grid_of_axes[len(panels) :]:
            axes.set_visible(False)
        handles = [Line2D([], [], color=CYCLE[k % len(CYCLE)], linewidth=2, label=line) for k, line in enumerate(names)]
        figure.tight_layout(pad=0.6, h_pad=1.1, w_pad=0.9)
        figure.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=min(4, len(names)))
        figure.supxlabel("training step", fontsize=9, y=-0.02)
        figure.supylabel(axis, fontsize=9, x=-0.01)
        return svg(figure, name)
