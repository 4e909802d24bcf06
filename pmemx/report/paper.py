"""The page of a study: abstract, sections, grouped tables and pictures; self-contained like the report of a run."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import Literal

from pmemx.report.html import banner, drawing
from pmemx.report.page import Picture

Kind = Literal["", "best", "yes", "no", "open"]


@dataclass(frozen=True)
class Cell:
    """Text with a look: best of its group, or one of three outcomes."""

    text: str
    kind: Kind = ""


@dataclass(frozen=True)
class Sheet:
    """A table in groups of rows, each under its name; an empty name is no heading. words: how many columns are text.

    wide: its text needs room.
    """

    title: str
    columns: tuple[str, ...]
    groups: tuple[tuple[str, tuple[tuple[str | Cell, ...], ...]], ...]
    words: int = 1
    wide: bool = False


@dataclass(frozen=True)
class Part:
    """One heading with its text, pictures, tables and, at the end, a list."""

    key: str
    title: str
    text: str = ""
    pictures: tuple[Picture, ...] = ()
    sheets: tuple[Sheet, ...] = ()
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Paper:
    """notice: what a reader must know before anything else; empty for nothing. summary: beside the abstract."""

    title: str
    subtitle: str
    abstract: str
    parts: tuple[Part, ...]
    notice: str = ""
    summary: tuple[Sheet, ...] = ()


def paper_html(paper: Paper) -> str:
    """The whole page; every name from the runs is escaped, and arXiv numbers become links."""
    here = files("pmemx.report")
    style = "".join(here.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "paper.css"))
    return Template(here.joinpath("paper.html").read_text(encoding="utf-8")).substitute(
        title=escape(paper.title),
        subtitle=escape(paper.subtitle),
        style=style,
        notice=banner(paper.notice),
        abstract=escape(paper.abstract),
        summary="".join(map(_sheet, paper.summary)),
        contents="".join(f'<a href="#{part.key}">{escape(part.title)}</a>' for part in paper.parts),
        sections="\n".join(map(_part, paper.parts)),
    )


def _part(part: Part) -> str:
    text = f'<p class="lead">{escape(part.text)}</p>' if part.text else ""
    lines = f"<ul>{''.join(f'<li>{_linked(line)}</li>' for line in part.lines)}</ul>" if part.lines else ""
    pictures, sheets = "".join(map(_picture, part.pictures)), "".join(map(_sheet, part.sheets))
    return f'<section id="{part.key}"><h2>{escape(part.title)}</h2>{text}{pictures}{sheets}{lines}</section>'


def _picture(picture: Picture) -> str:
    rows = picture.table.rows
    sheet = Sheet("", picture.table.columns, (("", rows),), picture.table.words)
    return (
        f"<figure><figcaption>{escape(picture.title)}</figcaption>{drawing(picture)}"
        f"<details><summary>The numbers behind it</summary>{_table(sheet)}</details></figure>"
    )


def _sheet(sheet: Sheet) -> str:
    title = f"<h3>{escape(sheet.title)}</h3>" if sheet.title else ""
    return f'<div class="sheet{" wide" if sheet.wide else ""}">{title}{_table(sheet)}</div>'


def _table(sheet: Sheet) -> str:
    return f'<div class="scroll" tabindex="0"><table>{"".join(_rows(sheet))}</table></div>'


def _rows(sheet: Sheet) -> Iterator[str]:
    kinds = ["" if k < sheet.words else ' class="n"' for k in range(len(sheet.columns))]
    heads = (f'<th scope="col"{kind}>{escape(cell)}</th>' for kind, cell in zip(kinds, sheet.columns, strict=True))
    yield f"<thead><tr>{''.join(heads)}</tr></thead>"
    for name, rows in sheet.groups:
        yield "<tbody>"
        if name:
            yield f'<tr class="group"><th scope="rowgroup" colspan="{len(sheet.columns)}">{escape(name)}</th></tr>'
        for row in rows:
            rest = (f"<td{kind}>{_cell(cell)}</td>" for kind, cell in zip(kinds[1:], row[1:], strict=True))
            yield f'<tr><th scope="row">{_cell(row[0])}</th>{"".join(rest)}</tr>'
        yield "</tbody>"


def _cell(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return _linked(cell)
    return f'<span class="{cell.kind}">{_linked(cell.text)}</span>' if cell.kind else _linked(cell.text)


def _linked(text: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>', escape(text))


def sheet_markdown(sheet: Sheet) -> str:
    """The same table as Markdown, group names as rows in bold."""
    lines = [
        _line(sheet.columns),
        "|" + "".join(" --- |" if k < sheet.words else " ---: |" for k in range(len(sheet.columns))),
    ]
    for name, rows in sheet.groups:
        if name:
            lines.append(_line((Cell(name, "best"), *[""] * (len(sheet.columns) - 1))))
        lines += [_line(row) for row in rows]
    return "\n".join(lines)


def _line(cells: tuple[str | Cell, ...]) -> str:
    return "| " + " | ".join(map(_markdown, cells)) + " |"


def _markdown(cell: str | Cell) -> str:
    text = cell if isinstance(cell, str) else cell.text
    for mark in "\\`*_[]<>|#$~":
        text = text.replace(mark, "\\" + mark)
    return f"**{text}**" if isinstance(cell, Cell) and cell.kind == "best" else text
