"""The table that a run ends with."""

from rich.table import Table

from pmemx.core.metric import Figure
from pmemx.core.stage import Ledger
from pmemx.stage.plan import Outcome

ROWS = 24


def summary(outcomes: tuple[Outcome, ...], ledger: Ledger) -> Table:
    """Stages with their times and headline numbers; with a figure's interval and n where the ledger holds one of that name."""
    table = Table("stage", "seconds", "number", "value", "95 % interval", "n", title="Summary")
    for outcome in outcomes:
        stage, seconds = outcome.stage, f"{outcome.seconds:.1f}"
        for name, value in list(outcome.values.items())[:ROWS] or [("", None)]:
            figure = ledger.figures.get(name, Figure(0.0))
            interval = "" if figure.low is None or figure.high is None else f"{figure.low:.3f} to {figure.high:.3f}"
            shown = "" if value is None else f"{value:.4g}"
            table.add_row(stage, seconds, name, shown, interval, str(figure.n or ""))
            stage = seconds = ""
        if len(outcome.values) > ROWS:
            table.add_row("", "", f"and {len(outcome.values) - ROWS} more, in metrics.csv", "", "", "")
    for note in ledger.notes:
        table.add_row("", "", note, "", "", "")
    return table
