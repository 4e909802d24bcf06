"""Tables of plain text to examples: passages of bounded length, of which a part of any length is the prompt."""

import random
from collections.abc import Mapping

from pmemx.core.domain import Example
from pmemx.core.passage import cut, divide_anywhere, halved_anywhere
from pmemx.data.columns import Placed, short_digest, texts
from pmemx.data.rows import Table


def passages(table: Table, columns: Mapping[str, str | None], *, characters: int, prompt_words: int) -> list[Placed]:
    """The passages of all texts of a table; passages of one text are one group, unless it is the table's only text.

    Passages begin anywhere in a text, and prompts have any length from `prompt_words` words to three quarters of the
    passage: what is learnt and tested on them holds for text of all lengths. Both are drawn by a hash of the text, so that a
    text is divided alike in every run. Passages of a single word are left out, since nothing would precede the word; so are
    repeated ones.
    Raises DataError with the place of every bad row.
    """
    placed: dict[str, Placed] = {}
    rows = texts(table, columns)
    for row, text, group in rows:
        drawn = random.Random(short_digest(text))
        pieces = cut(text, lambda part: len(part) <= characters)
        for number, passage in enumerate(
            part for piece in pieces for part in halved_anywhere(piece, prompt_words, drawn)
        ):
            prompt, continuation = divide_anywhere(passage, prompt_words, drawn)
            if prompt:
                own = short_digest(passage) if len(rows) == 1 else group
                example = Example(f"{short_digest(text)}/{number}", prompt, continuation, group=own, form="text")
                placed.setdefault(example.id, Placed(example, row.place))
    return list(placed.values())
