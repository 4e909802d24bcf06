"""Figures as rows of text: value with interval, questions, clusters, floor and ceiling, always together."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pmemx.core.metric import Figure

MEASURED = ("value [95 % interval]", "n", "clusters", "floor", "ceiling")


@dataclass(frozen=True)
class Table:
    """Plain text cells; numeric columns are those after the first `words`."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1


def number(value: float | None) -> str:
    """Three decimals, more where they would all be zero, thousands without; a dash where there is no value."""
    if value is None:
        return "–"
    if value == 0 or abs(value) >= 0.0095:
        text = f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"
        return text.replace("-", "−")
    return f"{value:.1g}".replace("-", "−") if abs(value) < 0.0005 else f"{value:.4f}".replace("-", "−")


def percent(value: float) -> str:
    """A share in per cent with at most one decimal; 100 only when it is."""
    text = f"{100 * value + 0.0:.1f}".removesuffix(".0")
    if text in ("-0", "100") and value not in (0, 1):
        text = "0" if text == "-0" else "> 99.9" if value < 1 else text
    return f"{text.replace('-', '−')}\u00a0%"


def with_interval(figure: Figure) -> str:
    """Value, then its interval where one could be given."""
    if figure.low is None or figure.high is None:
        return number(figure.value)
    return f"{number(figure.value)} [{number(figure.low)}, {number(figure.high)}]"


def measured(figure: Figure) -> tuple[str, ...]:
    """The cells under MEASURED."""
    return (
        with_interval(figure),
        str(figure.n),
        str(figure.clusters),
        number(figure.floor),
        number(figure.ceiling),
    )


def table(heads: tuple[str, ...], figures: Iterable[tuple[tuple[str, ...], Figure]]) -> Table:
    """One row a figure: its names under `heads`, then what was measured."""
    return Table((*heads, *MEASURED), tuple((*names, *measured(figure)) for names, figure in figures), len(heads))


def table_of(head: str, figures: Mapping[str, Figure]) -> Table:
    """One row a figure, named by its key."""
    return table((head,), (((name,), figure) for name, figure in figures.items()))


def pairs(head: str, values: Mapping[str, str]) -> Table:
    """Two columns of text."""
    return Table((head, "value"), tuple(values.items()), 2)
