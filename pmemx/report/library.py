"""The section on the experts as a library: how alike their updates are, and which subspaces they share."""

from itertools import permutations

from pmemx.core.metric import Figure
from pmemx.report import heatmaps
from pmemx.report.page import Picture, Section
from pmemx.report.run import Run
from pmemx.report.tables import number, table, table_of

MEASURES = {
    "similarity": "Cosine similarity of updates",
    "overlap/input": "Overlap of the subspaces that updates read",
    "overlap/output": "Overlap of the subspaces that updates write",
}
MOST_EXPERTS = 40
"""Beyond it, cells are too small to read."""


def library(run: Run) -> tuple[Section, ...]:
    """One section, or none where the plan had no stage `library`, or one expert alone."""
    means = run.figures({title: f"{measure}/mean" for measure, title in MEASURES.items()})
    if not means:
        return ()
    pictures = [_matrix(run, measure, title) for measure, title in MEASURES.items()]
    text = (
        "Each pair of experts, by their factors alone. Colour is blue above what two random experts would have, and orange "
        "below: 0 for a cosine, and for an overlap its floor. clusters.json in the run's folder holds the tasks that "
        "belong together by model-based clustering."
    )
    shown = tuple(picture for picture in pictures if picture is not None)
    return (
        Section(
            "library", "The experts as a library", text, shown, (("Means over all pairs", table_of("measure", means)),)
        ),
    )


def _matrix(run: Run, measure: str, title: str) -> Picture | None:
    names = list(dict.fromkeys(block.name for block in run.record.blocks))
    figures: dict[tuple[str, str], Figure] = {}
    for one, other in permutations(names, 2):
        if found := run.figure(f"{measure}/{one}/{other}"):
            figures[one, other] = found
    names = [name for name in names if any(name in pair for pair in figures)]
    if not 2 <= len(names) <= MOST_EXPERTS:
        return None
    both = figures | {(other, one): figure for (one, other), figure in figures.items()}
    drawn = heatmaps.heatmap(
        f"library_{measure.replace('/', '_')}",
        names,
        names,
        {pair: figure.value - (figure.floor or 0.0) for pair, figure in both.items()},
        words={pair: f"{figure.value:.2f}" for pair, figure in both.items()},
        shade=heatmaps.by_gain(1.0),
        labels=("expert", "expert"),
    )
    values = {pair: figure.value for pair, figure in figures.items()}
    least, most = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    alt = (
        f"Heatmap of {len(names)} experts by themselves. The highest is {number(values[most])}, of {' and '.join(most)}; "
        f"the lowest {number(values[least])}, of {' and '.join(least)}."
    )
    return Picture(
        f"library_{measure.replace('/', '_')}",
        title,
        alt,
        drawn.svg,
        table(("expert", "and"), figures.items()),
        labels=drawn.labels,
        legend="– has no number: an expert is not compared with itself." if drawn.gaps else "",
    )
