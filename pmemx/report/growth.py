"""The page of a growth study: recovery and routing accuracy of every method over the number of experts in the bank."""

from collections.abc import Mapping
from pathlib import Path

from pmemx.core.atomic import write_whole
from pmemx.core.metric import Figure
from pmemx.core.study import Growth
from pmemx.report.page import READING, Picture
from pmemx.report.paper import Paper, Part, Sheet, paper_html, sheet_markdown
from pmemx.report.run import label
from pmemx.report.study import save_pictures, share
from pmemx.report.study_charts import growth as draw
from pmemx.report.tables import percent, table

Lines = Mapping[str, Mapping[int, Figure]]
LOWEST = -0.3
"""Recovery below it leaves the panel; the table has it."""


def write_growth(growth: Growth, folder: Path) -> Path:
    """Write growth.html, growth.md and figures/ into the folder, and return the path of growth.html."""
    sizes = [point.experts for point in growth.points]
    recovery = _lines(growth, "recovery/{score}/{method}/all_domains")
    routing = _lines(growth, "routing/{method}/accuracy/all_domains/test")
    parts = [
        _part(growth, "recovery", "Recovery", "Share of what the right expert gains over the base.", recovery, LOWEST),
        _part(
            growth, "routing", "Routing", "Share of held-out prompts sent to the expert of their domain.", routing, 0.0
        ),
    ]
    shown = tuple(part for part in parts if part is not None)
    save_pictures([picture for part in shown for picture in part.pictures], folder)
    told = dict.fromkeys(filter(None, (point.notice for point in growth.points)))
    notice = " ".join([*told, *(["One size only: there is no curve yet."] if len(sizes) == 1 else [])])
    said = _sentence(recovery, sizes)
    reading = Part("reading", "How to read the numbers", lines=READING)
    subtitle = f"banks of {', '.join(map(str, sizes))} experts"
    paper = Paper(growth.title, subtitle, said, (*shown, reading), notice)
    tables = [
        line for part in shown for sheet in part.sheets for line in (f"## {part.title}", "", sheet_markdown(sheet), "")
    ]
    lines = [f"# {growth.title}", "", f"{subtitle}", "", *([f"**{notice}**", ""] if notice else []), *tables]
    write_whole(folder / "growth.md", ("\n".join(lines).rstrip() + "\n").encode())
    path = folder / "growth.html"
    write_whole(path, paper_html(paper).encode())
    return path


def _lines(growth: Growth, pattern: str) -> dict[str, dict[int, Figure]]:
    """By method and size; methods without a figure are left out."""
    found: dict[str, dict[int, Figure]] = {}
    for method in growth.groups:
        name = pattern.format(score=growth.score, method=method)
        points = {point.experts: point.figures[name] for point in growth.points if name in point.figures}
        if points:
            found[method] = points
    return found


def _part(growth: Growth, key: str, title: str, text: str, found: Lines, lowest: float) -> Part | None:
    if not found:
        return None
    panels: dict[str, dict[str, Mapping[int, Figure]]] = {}
    for method, points in found.items():
        panels.setdefault(growth.groups[method], {})[method] = points
    drawn, raster = draw(f"growth_{key}", panels, axis=title.lower(), lowest=lowest)
    sizes = [point.experts for point in growth.points]
    rows = [((label(m), str(size)), figure) for m, points in found.items() for size, figure in sorted(points.items())]
    alt = f"{title} of {len(found)} methods over {', '.join(map(str, sizes))} experts, one panel a group. {_sentence(found, sizes)}"
    picture = Picture(
        f"growth_{key}", f"{title} over the number of experts", alt, drawn, table(("method", "experts"), rows), raster
    )
    groups = tuple(
        (group, tuple((label(m), *(share(points.get(size), unit="") for size in sizes)) for m, points in panel.items()))
        for group, panel in panels.items()
    )
    sheet = Sheet(f"{title}, % [95 %]", ("method", *(f"{size} experts" for size in sizes)), groups)
    return Part(
        key,
        title,
        f"{text} Vertical lines are 95 % intervals; a panel names its highest methods, and the table has all.",
        (picture,),
        (sheet,),
    )


def _sentence(found: Lines, sizes: list[int]) -> str:
    """Who is ahead at the smallest and at the largest size."""
    parts = []
    for size in dict.fromkeys((sizes[0], sizes[-1])):
        there = {method: points[size] for method, points in found.items() if size in points}
        if there:
            best = max(there, key=lambda method: there[method].value)
            parts.append(f"with {size} experts {label(best)} is highest, at {percent(there[best].value)}")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else "No method has a figure."
