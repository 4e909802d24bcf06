"""Heatmaps: experts by domains, where a gate sends prompts, and the matrix of growth."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from pmemx.core.evidence import SiteLoad
from pmemx.core.metric import Figure
from pmemx.report.style import BLUE, INK, ORANGE, canvas, labels_width, png, svg

Cells = Mapping[tuple[str, str], float]
Shade = Callable[[float], tuple[str, float]]
MOST_SITES = 42


@dataclass(frozen=True)
class Heatmap:
    """A drawing as SVG and, where asked for, as PNG.

    labels: points at its left, where the names of rows stand. gaps: whether a cell was not measured.
    """

    svg: str
    png: bytes
    labels: float
    gaps: bool


def heatmap(
    name: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Cells,
    *,
    words: Mapping[tuple[str, str], str],
    marked: Collection[tuple[str, str]] = (),
    shade: Shade | None = None,
    labels: tuple[str, str] = ("", ""),
    gap_before: str | None = None,
    raster: bool = False,
) -> Heatmap:
    """An annotated heatmap, with a PNG if `raster`. A missing cell is a dash; a marked one gets a frame.

    shade gives colour and strength from 0 to 1 of a value; by default blue, by the value itself. labels name the rows and
    the columns. gap_before sets the row of that name, and those below, apart.
    """
    widest = max(len(row) for row in rows)
    with canvas(1.0 + 0.075 * widest + 0.56 * len(columns), 0.2 + 0.4 * len(rows)) as figure:
        axes = figure.add_subplot()
        draw(axes, rows, columns, cells, words, marked, shade or _by_value, gap_before)
        axes.set_title(labels[1], fontsize=9.5, fontweight="normal", loc="left", pad=8)
        axes.annotate(labels[0], (0, 1), (-5, 5), textcoords="offset points", xycoords="axes fraction", ha="right")
        beside = labels_width(figure, axes)
        gaps = any((row, column) not in cells for row in rows for column in columns)
        return Heatmap(svg(figure, name), png(figure) if raster else b"", beside, gaps)


def draw(
    axes: Axes,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Cells,
    words: Mapping[tuple[str, str], str],
    marked: Collection[tuple[str, str]],
    shade: Shade,
    gap_before: str | None = None,
) -> None:
    """Cells, their text and the names around them."""
    split = rows.index(gap_before) if gap_before in rows else len(rows)
    heights = [y + (0.25 if y >= split else 0.0) for y in range(len(rows))]
    patches, colours = [], []
    for y, row in zip(heights, rows, strict=True):
        for x, column in enumerate(columns):
            if (value := cells.get((row, column))) is None:
                dash = axes.text(x + 0.5, y + 0.52, "–", ha="center", va="center", color=INK, alpha=0.5, fontsize=8)
                dash.set_in_layout(False)
                continue
            colour, strength = shade(value)
            strength = float(np.clip(strength, 0.04, 1.0))
            patches.append(Rectangle((x + 0.03, y + 0.03), 0.94, 0.94))
            colours.append((*to_rgb(colour), strength))
            ink = "#ffffff" if strength > 0.62 else INK
            if word := words.get((row, column)):
                text = axes.text(x + 0.5, y + 0.52, word, ha="center", va="center", color=ink, fontsize=8)
                text.set_in_layout(False)
    axes.add_collection(PatchCollection(patches, facecolors=colours, linewidths=0), autolim=False)
    frames = []
    for row, column in marked:
        if (row, column) in cells:
            corner = (columns.index(column) + 0.04, heights[rows.index(row)] + 0.04)
            frames.append(Rectangle(corner, 0.92, 0.92))
    frame = PatchCollection(frames, facecolors="none", edgecolors=INK, linewidths=1.6)
    axes.add_collection(frame, autolim=False)
    axes.set_xlim(0, len(columns))
    axes.set_ylim(heights[-1] + 1, 0)
    # Above the cells and to the right, where a narrow page sees them first and no row's name is in their way.
    axes.xaxis.tick_top()
    axes.set_xticks([x + 0.4 for x in range(len(columns))], columns, rotation=38, ha="left", rotation_mode="anchor")
    axes.set_yticks([y + 0.5 for y in heights], rows)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _by_value(value: float) -> tuple[str, float]:
    return BLUE, value


def by_gain(largest: float) -> Shade:
    """Blue for a gain, orange for a loss, as strong as its share of the largest; its root, so that small ones show."""
    return lambda value: (BLUE if value >= 0 else ORANGE, (min(1.0, abs(value) / max(largest, 1e-9))) ** 0.5)


def shares(figures: Mapping[tuple[str, str], Figure]) -> tuple[Cells, dict[tuple[str, str], str]]:
    """Values between 0 and 1, and their text in per cent."""
    cells = {key: figure.value for key, figure in figures.items()}
    return cells, {key: share(value) for key, value in cells.items()}


def share(value: float) -> str:
    """A value between 0 and 1 as whole per cent; 0 and 100 only where it is that."""
    text = f"{100 * value:.0f}"
    if text == "0" and value >= 0.0005:
        return "<1"
    return ">99" if text == "100" and value < 0.9995 else text


def growth(name: str, runs: Mapping[str, Cells], domains: Sequence[str]) -> str:
    """R[i, j] of several runs side by side: stage by domain, in per cent."""
    stages = [str(i) for i in range(1, len(domains) + 1)]
    width = 0.4 * len(domains) + 0.3
    with canvas(0.8 + (width + 0.25) * len(runs), 1.3 + 0.29 * len(domains)) as figure:
        for axes, (title, cells) in zip(np.atleast_1d(figure.subplots(1, len(runs))), runs.items(), strict=True):
            words = {key: share(value) for key, value in cells.items()}
            draw(axes, stages, domains, cells, words, [(str(i), d) for i, d in enumerate(domains, 1)], _by_value)
            axes.set_title(title)
            axes.set_ylabel("after stage")
        figure.subplots_adjust(wspace=0.22)
        return svg(figure, name)


def right_weight(
    loads: Sequence[SiteLoad], choices: Mapping[str, int]
) -> tuple[list[str], dict[tuple[str, str], float]]:
    """Weight that each site gives the right choice, per domain; sites are averaged per layer when there are many.

    choices: index of the right choice by domain. Returns the rows in the order of the model, and the cells.
    """
    sites = list(dict.fromkeys(load.site for load in loads))
    named = {site: f"layer {_layer(site)}" if len(sites) > MOST_SITES else _short(site) for site in sites}
    grouped: dict[tuple[str, str], list[float]] = {}
    for load in loads:
        if load.domain in choices:
            grouped.setdefault((named[load.site], load.domain), []).append(load.weights[choices[load.domain]])
    return list(dict.fromkeys(named.values())), {key: float(np.mean(values)) for key, values in grouped.items()}


def folded(rows: Sequence[str], columns: Sequence[str], words: Mapping[tuple[str, str], str]) -> dict[str, str]:
    """Neighbouring rows that read alike as one: its name, "first … last (count)", by the first of its rows."""
    groups = [
        list(group) for _, group in groupby(rows, lambda row: tuple(words.get((row, column)) for column in columns))
    ]
    return {g[0]: g[0] if len(g) == 1 else f"{g[0]} … {g[-1]} ({len(g)})" for g in groups}


def _layer(site: str) -> str:
    found = re.search(r"\d+", site)
    return found[0] if found else site


def _short(site: str) -> str:
    """ "model.layers.3.self_attn.q_proj" as "3 · q_proj"; another name stays whole."""
    found = re.search(r"\.(\d+)\..*?([^.]+)$", site)
    return f"{found[1]} · {found[2]}" if found else site
