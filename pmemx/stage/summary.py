"""The tables that a run ends with: what every method reached, and how long every stage took."""

import re
from collections.abc import Mapping

from rich.table import Table

from pmemx.core.metric import Figure
from pmemx.stage.plan import Outcome


def methods_table(figures: Mapping[str, Figure], columns: Mapping[str, str]) -> Table:
    """One row a method, one column a figure, with its 95 % interval.

    columns: names of figures by title, with {method} where a method's name stands: "exact_match/{method}/all_domains/test".
    A column without any figure is left out.
    """
    found = {title: _by_method(figures, pattern) for title, pattern in columns.items()}
    found = {title: cells for title, cells in found.items() if cells}
    table = Table("method", title="Methods", title_justify="left")
    for title in found:
        table.add_column(title, justify="right")
    for method in dict.fromkeys(method for cells in found.values() for method in cells):
        table.add_row(method, *(_shown(cells.get(method)) for cells in found.values()))
    return table


def stages_table(outcomes: tuple[Outcome, ...], *, most: int = 6) -> Table:
    """One row a stage: seconds, and its headline numbers where they are few."""
    table = Table("stage", title="Stages", title_justify="left")
    table.add_column("seconds", justify="right")
    table.add_column("numbers")
    for outcome in outcomes:
        numbers = [f"{name} {value:.4g}" for name, value in outcome.values.items()]
        shown = ", ".join(numbers) if len(numbers) <= most else f"{len(numbers)}, in metrics.csv"
        table.add_row(outcome.stage, f"{outcome.seconds:.1f}", shown)
    return table


def _by_method(figures: Mapping[str, Figure], pattern: str) -> dict[str, Figure]:
    before, after = map(re.escape, pattern.split("{method}"))
    matches = ((re.fullmatch(f"{before}((?:merge/)?[^/]+){after}", name), figure) for name, figure in figures.items())
    return {match[1]: figure for match, figure in matches if match}


def _shown(figure: Figure | None) -> str:
    if figure is None:
        return ""
    interval = "" if figure.low is None or figure.high is None else f" [dim]{figure.low:.3f} to {figure.high:.3f}[/]"
    return f"{figure.value:.3f}{interval}"
