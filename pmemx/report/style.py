"""The look of the figures: colours that survive colour blindness and dark mode, and SVG that is the same on every run."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK = "#010203"  # stands for the page's text colour; becomes currentColor in the inline picture
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = (
    "#2f7fc1",
    "#e08a1e",
    "#2a9d75",
    "#d1552b",
    "#a66bb0",
    "#56b4e9",
    "#8a929c",
)
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY)
OTHERS = (SKY, "#6a6fc4", "#5aa36b")  # methods without a colour of their own
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
OF_METHOD = {
    "gate": (BLUE, "o"),
    "oracle": (GREEN, "D"),
    "teacher": (GREY, "s"),
    "base": (GREY, "X"),
    "average": (ORANGE, "^"),
    "sum": (RED, "v"),
    "experts_mean": (PURPLE, "P"),
    "sequential": (RED, "s"),
    "joint": ("#9c7a3c", "P"),
    "bank": (BLUE, "o"),
    "bank_oracle": (GREEN, "D"),
}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.facecolor": "none",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}
_PAD = 0.06  # inches around a picture
_PIXELS = 4 / 3  # of CSS a point
_LEAST = 0.85  # of the natural width: below it, text of 8 points is smaller than 9 pixels, and the picture scrolls
_PROLOG = '<?xml version="1.0" encoding="utf-8"?>\n'
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def of_method(method: str, position: int = 0) -> tuple[str, str]:
    """Colour and marker of a method; unknown methods take theirs by position."""
    return OF_METHOD.get(method, (OTHERS[position % len(OTHERS)], MARKERS[position % len(MARKERS)]))


@contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """A figure of width x height inches, drawn in the report's style."""
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height))
        FigureCanvasSVG(figure)
        yield figure


def grid(axes: Axes, axis: str) -> None:
    """Faint lines behind the marks along one axis, and no spine across them."""
    axes.set_axisbelow(True)
    axes.grid(axis="x" if axis == "x" else "y")
    axes.spines["left" if axis == "x" else "bottom"].set_visible(False)


def svg(figure: Figure, name: str) -> str:
    """The figure as SVG whose bytes depend on its content alone; text stays text, group ids are dropped."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    settings: dict[Any, Any] = {**_SETTINGS, "svg.hashsalt": name}
    with mpl.rc_context(settings):
        figure.savefig(buffer, format="svg", metadata=nothing, bbox_inches="tight", pad_inches=_PAD)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].rstrip()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[A-Za-z0-9]+_\d+"', "", text)
    # Glyph widths were laid out in DejaVu Sans, which is wider than what replaces it, so nothing can overflow. Matplotlib
    # writes one of two forms, by its version.
    text = re.sub(r"font: ((?:[\w.]+ )*[\d.]+px) [^;\"]*", rf"font: \1 {_FONTS}", text)
    return re.sub(r"font-family: [^;\"]*", f"font-family: {_FONTS}", text)


def png(figure: Figure) -> bytes:
    """The figure as a picture on white, for trackers that show no SVG."""
    buffer = io.BytesIO()
    with mpl.rc_context(_SETTINGS):
        figure.savefig(
            buffer, format="png", dpi=160, facecolor="#ffffff", bbox_inches="tight", metadata={"Software": None}
        )
    return buffer.getvalue()


def standalone(picture: str) -> str:
    """For a file of its own: dark ink on a white card, whatever page shows it."""
    start = picture.index(">") + 1
    card = '\n <rect width="100%" height="100%" fill="#ffffff"/>'
    return (_PROLOG + picture[:start] + card + picture[start:]).replace(INK, "#1b1f24") + "\n"


def labels_width(figure: Figure, axes: Axes) -> float:
    """Points between the left edge of the picture that `svg` makes and the axes, where the names of rows stand."""
    start = figure.get_tightbbox().x0 - _PAD
    return 72 * (axes.get_position().x0 * figure.get_figwidth() - start)


def inline(picture: str, alt: str, name: str, labels: float = 0.0) -> str:
    """For the page: ink follows the page's text colour, and text stays large enough to read, so that a narrow page scrolls.

    Args:
        alt: what the picture shows, escaped.
        name: an id that no other picture of the page has.
        labels: points at the left that stay in sight while the rest scrolls; 0 where nothing needs to.
    """
    head, body = picture.split(">", 1)
    width, height = (float(re.search(rf' {side}="([\d.]+)pt"', head)[1]) for side in ("width", "height"))  # type: ignore[index]
    body = body.replace(INK, "currentColor").removesuffix("</svg>")
    natural = width * _PIXELS
    beside, drawn = "", f'<g id="{name}">{body}</g>'
    if labels:
        beside = _window('class="labels" aria-hidden="true"', 0, labels, width, height, f'<use href="#{name}"/>')
    shown = _window(f'role="img" aria-label="{alt}"', labels, width - labels, width, height, drawn)
    size = f"width:{natural:.0f}px;min-width:{_LEAST * natural:.0f}px"
    return f'<div class="drawing" style="{size}">{beside}{shown}</div>'


def _window(attributes: str, left: float, width: float, whole: float, height: float, body: str) -> str:
    """The part of a picture from `left` on, all in points, as wide a share of the page's room as of the picture."""
    box = f'viewBox="{left:.6g} 0 {width:.6g} {height:.6g}"'
    return f'<svg {attributes} {box} style="width:{100 * width / whole:.6g}%">{body}</svg>'
