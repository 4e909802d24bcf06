"""What verbs print: one JSON document, or text in which nothing that a card says can command the terminal."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pmemx.store.references import hidden

if TYPE_CHECKING:
    from rich.table import Table

# A line of a table is one line in a file, however long.
_WIDE = 100_000


def visible(text: str) -> str:
    """The text on one line, with escapes in place of what could be obeyed or hidden."""
    return "".join(_escaped(c) if hidden(c) else c for c in text)


def counted(count: int, noun: str) -> str:
    """A count with its noun, which takes an s in the plural: "1 block", "2 blocks"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def print_line(text: str) -> None:
    """One line, made visible."""
    _write(visible(text) + "\n")


def print_json(value: object) -> None:
    """One JSON document, in ASCII: whole in every encoding, and no terminal obeys it."""
    _write(json.dumps(value, indent=1) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table; None is shown as nothing, and columns of numbers are aligned to the right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float | None) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    _fill(table, rows)


def print_fields(fields: Mapping[str, object]) -> None:
    """Names and values, one a line; what is empty is left out."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    _fill(table, [(name, value) for name, value in fields.items() if value not in (None, "", (), [], {})])


def _fill(table: "Table", rows: Sequence[Sequence[object]]) -> None:
    from rich.console import Console
    from rich.text import Text

    for row in rows:
        # Text, because a name may hold brackets, which a string would lose as markup.
        table.add_row(*(Text(cell_text(value)) for value in row))
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    # Through a capture, because rich turns a pipe that was closed into an exit of its own.
    with console.capture() as captured:
        console.print(table)
    _write("".join(line.rstrip() + "\n" for line in captured.get().splitlines() if line.strip()))


def cell_text(value: object) -> str:
    """What a cell of a table shows of a value."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return visible(", ".join(value))
    return visible(json.dumps(value, ensure_ascii=False))


def _write(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
