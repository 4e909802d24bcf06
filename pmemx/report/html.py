"""The report as one self-contained HTML page: no script, no request, light and dark, readable without pictures."""

from collections.abc import Iterator
from html import escape
from importlib.resources import files
from string import Template

from pmemx.report.page import READING, Finding, Page, Picture, Section
from pmemx.report.style import inline
from pmemx.report.tables import Table


def html_of(page: Page) -> str:
    """The whole report; every name from the run is escaped."""
    here = files("pmemx.report")
    return Template(here.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(page.title),
        subtitle=escape(page.subtitle),
        style=here.joinpath("page.css").read_text(encoding="utf-8"),
        notice=banner(page.notice),
        contents="".join(f'<a href="#{s.key}">{escape(s.title)}</a>' for s in page.shown),
        findings="".join(map(_finding, page.findings))
        or "<p>The run recorded no figure that answers a question here.</p>",
        sections="".join(map(_section, page.shown)),
        facts="".join(
            f'<div class="card"><h3>{escape(title)}</h3>{_table(table)}</div>' for title, table in page.facts
        ),
        notes=_list(page.notes),
        reading=_list(READING),
        absent=_absent(page),
        config=_details("Configuration", f"<pre>{escape(page.config)}</pre>") if page.config else "",
        appendix="".join(_details(f"{title} ({len(table.rows)})", _table(table)) for title, table in page.appendix),
    )


def banner(notice: str) -> str:
    """What a reader must know before anything else; nothing for an empty one."""
    return f'<p class="notice" role="note">{escape(notice)}</p>' if notice else ""


def _finding(finding: Finding) -> str:
    return (
        f'<div class="finding"><h3>{escape(finding.question)}</h3><p class="answer">{escape(finding.answer)}</p>'
        f"<p>{escape(finding.sentence)}</p></div>"
    )


def _section(section: Section) -> str:
    pictures = "".join(map(_picture, section.pictures))
    tables = "".join(f"<h3>{escape(title)}</h3>{_table(table)}" for title, table in section.tables)
    return (
        f'<section id="{section.key}"><h2>{escape(section.title)}</h2><p class="lead">{escape(section.text)}</p>'
        f"{pictures}{tables}</section>"
    )


def drawing(picture: Picture) -> str:
    """The drawing in a box that scrolls by itself where the page is narrow, and its legend."""
    drawn = inline(picture.svg, escape(picture.alt), f"drawing-{picture.file}", picture.labels)
    legend = f'<p class="legend">{escape(picture.legend)}</p>' if picture.legend else ""
    return f'<div class="picture" tabindex="0">{drawn}</div>{legend}'


def _picture(picture: Picture) -> str:
    return (
        f"<figure><figcaption>{escape(picture.title)}</figcaption>{drawing(picture)}"
        f"{_details('The numbers behind it', _table(picture.table))}</figure>"
    )


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def _table(table: Table) -> str:
    return f'<div class="scroll" tabindex="0"><table>{"".join(_table_rows(table))}</table></div>'


def _table_rows(table: Table) -> Iterator[str]:
    kinds = ["" if k < table.words else ' class="n"' for k in range(len(table.columns))]
    heads = (f'<th scope="col"{kind}>{escape(cell)}</th>' for kind, cell in zip(kinds, table.columns, strict=True))
    yield f"<thead><tr>{''.join(heads)}</tr></thead><tbody>"
    for row in table.rows:
        cells = zip(kinds[1:], row[1:], strict=True)
        rest = "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in cells)
        yield f'<tr><th scope="row">{escape(row[0])}</th>{rest}</tr>'
    yield "</tbody>"


def _absent(page: Page) -> str:
    if not page.absent:
        return ""
    lines = _list(tuple(f"{section.title}: {section.absent}." for section in page.absent))
    return f'<section id="absent"><h2>Not in this run</h2>{lines}</section>'


def _list(lines: tuple[str, ...]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""
