"""Fit a corpus to a context: what is too long is counted, and refused, dropped or cut as the user chose."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal

from pmemx.core.domain import Corpus, Document, Domain, Example
from pmemx.core.encoding import encode
from pmemx.core.errors import DataError
from pmemx.core.passage import cut, divide_anywhere

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OnLong = Literal["error", "drop", "truncate"]
_OWN_TOKENS = 8
_FEWEST_WORDS = 16
"""Of the prompt of a chunk of text, where the text's own has as many."""


@dataclass(frozen=True)
class SplitLength:
    """How the rows of one split fared. too_long counts before anything was done, with the document in context;
    too_long_alone counts prompt and response without it. chunked rows became several."""

    domain: str
    split: str
    rows: int
    too_long: int = 0
    too_long_alone: int = 0
    truncated: int = 0
    dropped: int = 0
    chunked: int = 0


@dataclass(frozen=True)
class LengthReport:
    """One line for every split of every domain, general text and unknown prompts included."""

    context: int
    on_long: OnLong
    splits: tuple[SplitLength, ...]

    @property
    def too_long(self) -> int:
        """Rows of all domains that were longer than the context."""
        return sum(split.too_long for split in self.splits)

    def __str__(self) -> str:
        """A line for each split with a row that is too long."""
        return "\n".join(self._line(split) for split in self.splits if split.too_long)

    def _line(self, split: SplitLength) -> str:
        done = ", ".join(
            f"{number} {name}" for name in ("truncated", "dropped", "chunked") if (number := getattr(split, name))
        )
        return (
            f"{split.domain} {split.split}: {split.too_long} of {split.rows} rows are longer than {self.context} "
            f"tokens, {split.too_long_alone} of them even without their document" + (f"; {done}" if done else "")
        )


def fit_corpus(
    corpus: Corpus, tokenizer: "PreTrainedTokenizerBase", context: int, on_long: OnLong
) -> tuple[Corpus, LengthReport]:
    """A corpus of which no row is longer than `context` tokens, even with its document, and what that took.

    drop leaves a long row out. truncate cuts the document at its start, then, when none is left, the prompt at its
    start; never the response: a row whose response alone is too long is dropped. error raises DataError with counts
    for every domain and split. General text, negatives and the documents that an expert reads whole are never refused, but cut
    into chunks; the chunks of one text keep its group.
    Raises DataError as well when nothing remains to train or test a domain on.
    """
    if context < 8:
        raise DataError(f"the context is {context} tokens, but at least 8 are needed; use a base model with more")
    fitted: dict[str, dict[str, tuple[Example, ...]]] = {}
    lines: list[SplitLength] = []
    for domain in corpus:
        chunk = domain is corpus.general or domain is corpus.negatives
        splits = fitted[domain.name] = {}
        for split in ("train", "validation", "test"):
            rows = getattr(domain, split)
            splits[split], line = _fit_split(rows, tokenizer, context, "chunk" if chunk else on_long)
            lines.append(replace(line, domain=domain.name, split=split))
    report = LengthReport(context, on_long, tuple(lines))
    _refuse(report, [(domain, fitted[domain.name]) for domain in corpus])

    def fit(domain: Domain) -> Domain:
        documents = _chunked_documents(domain, tokenizer, context)
        return replace(domain, documents=documents, **fitted[domain.name])

    return corpus.map(fit), report


def _refuse(report: LengthReport, domains: list[tuple[Domain, dict[str, tuple[Example, ...]]]]) -> None:
    if report.on_long == "error" and any(line.too_long > line.chunked for line in report.splits):
        raise DataError(
            f"rows are longer than the context:\n{report}\n"
            "shorten them, take a base model with a longer context, or set rows.on_long to drop or truncate"
        )
    empty = [
        f"{domain.name}: all {len(getattr(domain, split))} rows of {split} are longer than {report.context} tokens"
        for domain, splits in domains
        for split in ("train", "test")
        if not splits[split]
    ]
    if empty:
        raise DataError("\n".join([*empty, "shorten these rows, leave the domain out, or set rows.on_long=truncate"]))


def _fit_split(
    rows: tuple[Example, ...], tokenizer: "PreTrainedTokenizerBase", context: int, on_long: OnLong | Literal["chunk"]
) -> tuple[tuple[Example, ...], SplitLength]:
    def fits(example: Example) -> bool:
        return _fits(example, tokenizer, context)

    kept: list[Example] = []
    counts: Counter[str] = Counter()
    for row in rows:
        if fits(row):
            kept.append(row)
            continue
        alone = replace(row, document="")
        counts["too_long"] += 1
        counts["too_long_alone"] += not (row.document and fits(alone))
        match on_long:
            case "chunk":
                kept += _chunked(row, fits)
                counts["chunked"] += 1
            case "truncate" if fits(replace(alone, prompt="")):
                kept.append(_truncated(row, fits))
                counts["truncated"] += 1
            case "drop" | "truncate":
                counts["dropped"] += 1
    return tuple(kept), SplitLength("", "", len(rows), **counts)


def _fits(example: Example, tokenizer: "PreTrainedTokenizerBase", context: int) -> bool:
    text = f"{example.document}\n\n{example.prompt} {example.response}"
    # No tokenizer of causal models gives an ASCII character two tokens, or a text more than a few of its own. Most rows
    # of most models need no tokenization, which would take minutes for a large corpus.
    if text.isascii() and len(text) + _OWN_TOKENS <= context:
        return True
    return len(encode(tokenizer, example, with_document=True).ids) <= context


def _chunked(row: Example, fits: Callable[[Example], bool]) -> list[Example]:
    pieces = cut(
        f"{row.prompt} {row.response}".strip(), lambda text: fits(replace(row, document="", prompt="", response=text))
    )
    words, drawn = min(len(row.prompt.split()), _FEWEST_WORDS), random.Random(row.id)
    # Drawn anew: the prompt of the whole may be longer than a piece.
    parts = [divide_anywhere(piece, words, drawn) if words else ("", piece) for piece in pieces]
    group = row.group or row.id
    return [
        replace(row, id=f"{row.id}/{number}", document="", prompt=prompt, response=response, group=group)
        for number, (prompt, response) in enumerate(parts)
    ]


def _chunked_documents(domain: Domain, tokenizer: "PreTrainedTokenizerBase", context: int) -> tuple[Document, ...]:
    """Documents that fit as texts without a prompt; the n-th chunks of a text and its paraphrases stay together."""

    def fits(text: str) -> bool:
        return _fits(Example("", "", text), tokenizer, context)

    kept = []
    for document in domain.documents:
        if all(fits(text) for text in (document.text, *document.paraphrases)):
            kept.append(document)
            continue
        pieces = [cut(text, fits) for text in (document.text, *document.paraphrases)]
        for number, column in enumerate(zip_longest(*pieces, fillvalue="")):
            first, *others = [text for text in column if text]
            kept.append(Document(f"{document.id}/{number}", first, tuple(others)))
    return tuple(kept)


def _truncated(row: Example, fits: Callable[[Example], bool]) -> Example:
    alone = replace(row, document="")
    if row.document and fits(alone):
        start = _least(len(row.document), lambda cut: fits(replace(row, document=_tail(row.document, cut))))
        return replace(row, document=_tail(row.document, start))
    start = _least(len(row.prompt), lambda cut: fits(replace(alone, prompt=_tail(row.prompt, cut))))
    return replace(alone, prompt=_tail(row.prompt, start))


def _tail(text: str, start: int) -> str:
    """The text from the first word that begins at or after `start`; from `start` where there is none."""
    if start == 0:
        return text
    space = next((i for i in range(start - 1, len(text)) if text[i].isspace()), None)
    return text[start:] if space is None else text[space:].lstrip()


def _least(high: int, holds: Callable[[int], bool]) -> int:
    """The least number up to `high` from which on `holds` is true, by bisection."""
    low = 0
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
