"""The report as Markdown: the same words and tables, pictures as files beside it."""

from collections.abc import Iterator

from pmemx.report.page import READING, Page, Section
from pmemx.report.tables import Table

LONG = 14


def markdown_of(page: Page) -> str:
    """The whole report but its appendix, which is record.json itself."""
    return "\n".join(_lines(page)).rstrip() + "\n"


def _lines(page: Page) -> Iterator[str]:
    yield from (f"# {_plain(page.title)}", "", _plain(page.subtitle), "")
    if page.notice:
        yield from (f"> **{_plain(page.notice)}**", "")
    for finding in page.findings:
        yield f"- **{_plain(finding.question)}** **{_plain(finding.answer)}** {_plain(finding.sentence)}"
    for section in page.shown:
        yield from _section(section)
    yield from ("", "## How it was made", "")
    for title, table in page.facts:
        yield from (f"**{_plain(title)}**", "", *_table(table), "")
    yield from (f"- {_plain(note)}" for note in page.notes)
    yield from ("", "## How to read the numbers", "", *(f"- {_plain(line)}" for line in READING))
    if page.absent:
        yield from ("", "## Not in this run", "")
        yield from (f"- {_plain(section.title)}: {_plain(section.absent)}." for section in page.absent)
    yield from ("", "All figures of the run are in `record.json`.")


def _section(section: Section) -> Iterator[str]:
    yield from ("", f"## {_plain(section.title)}", "", _plain(section.text), "")
    for picture in section.pictures:
        yield from (f"**{_plain(picture.title)}**", "", f"![{_plain(picture.alt)}](figures/{picture.file}.svg)", "")
        if picture.legend:
            yield from (_plain(picture.legend), "")
        if len(picture.table.rows) > LONG:
            yield from ("<details><summary>Numbers</summary>", "", *_table(picture.table), "", "</details>", "")
        else:
            yield from (*_table(picture.table), "")
    for title, table in section.tables:
        yield from (f"**{_plain(title)}**", "", *_table(table), "")


def _table(table: Table) -> Iterator[str]:
    yield "| " + " | ".join(map(_plain, table.columns)) + " |"
    yield "|" + "".join(" --- |" if k < table.words else " ---: |" for k in range(len(table.columns)))
    for row in table.rows:
        yield "| " + " | ".join(map(_plain, row)) + " |"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is written."""
    for mark in "\\`*_[]<>|#$~":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())
