"""Tables of plain text to examples: passages of bounded length, whose first words are the prompt."""

from collections.abc import Mapping

from pmemx.core.domain import Example
from pmemx.core.passage import cut, divide
from pmemx.data.columns import Placed, short_digest, texts
from pmemx.data.rows import Table


def passages(table: Table, columns: Mapping[str, str | None], *, characters: int, prompt_words: int) -> list[Placed]:
    """The passages of all texts of a table; passages of one text are one group, unless it is the table's only text.

    Passages of a single word are left out, since nothing would precede the word; so are repeated ones.
    Raises DataError with the place of every bad row.
    """
    placed: dict[str, Placed] = {}
    rows = texts(table, columns)
    for row, text, group in rows:
        for number, passage in enumerate(cut(text, lambda part: len(part) <= characters)):
            prompt, continuation = divide(passage, prompt_words)
            if prompt:
                own = short_digest(passage) if len(rows) == 1 else group
                example = Example(f"{short_digest(text)}/{number}", prompt, continuation, group=own, form="text")
                placed.setdefault(example.id, Placed(example, row.place))
    return list(placed.values())
