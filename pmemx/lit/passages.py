"""Passages to batches: the continuations of one context share it and never see each other, and passages share rows."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pmemx.core.pretraining import Passage

ROW = 256


@dataclass(frozen=True, eq=False)
class PassageBatch:
    """Rows of one or more passages, padded on the right.

    position: restarts with each passage, and behind the context for each continuation, so that every text reads as if
    it stood alone. source: index in the row of the token before each token in its own text. passage: 1, 2, ... in
    the order given, 0 on padding. continuation: 0 in a context, else 1, 2, ... through the batch. answer: tokens of
    responses.
    """

    ids: Int[Tensor, "row token"]
    position: Int[Tensor, "row token"]
    source: Int[Tensor, "row token"]
    passage: Int[Tensor, "row token"]
    continuation: Int[Tensor, "row token"]
    answer: Bool[Tensor, "row token"]

    def visible(self) -> Bool[Tensor, "row 1 token token"]:
        """Which token (third axis) sees which (last axis): the context and its own continuation, never the future."""
        query, key = self.continuation[:, :, None], self.continuation[:, None, :]
        causal = torch.ones(query.shape[1], query.shape[1], dtype=torch.bool, device=query.device).tril()
        together = self.passage[:, :, None] == self.passage[:, None, :]
        return (causal & together & ((key == 0) | (key == query)))[:, None]

    def weight(self, rest: float) -> Float[Tensor, "row token"]:
        """1 on responses, `rest` on other text, 0 on padding and on the token that nothing precedes."""
        return torch.where(self.answer, 1.0, rest) * (self.position > 0)

    def to(self, device: torch.device) -> "PassageBatch":
        """The same rows on another device."""
        return PassageBatch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


@dataclass(frozen=True)
class _Laid:
    """One passage as columns, in the order of the fields of PassageBatch; source counts from its own first token."""

    columns: tuple[list[int], ...]

    def __len__(self) -> int:
        return len(self.columns[0])


def batch_passages(tokenizer: Any, passages: Sequence[Passage]) -> PassageBatch:
    """[bos] context, then each continuation as blank line, prompt, response, [eos]; without context no blank line."""
    texts = [text for p in passages for text in (p.context, *(part for pair in p.continuations for part in pair))]
    encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    blank = tokenizer("\n\n", add_special_tokens=False)["input_ids"][-2:]
    laid, continuation = [], 0
    for number, passage in enumerate(passages, 1):
        ids = [tokenizer.bos_token_id, *next(encoded)]
        context = len(ids)
        position, source, owner, answer = list(range(context)), [0, *range(context - 1)], [0] * context, [0] * context
        for prompt, _ in passage.continuations:
            given, said = next(encoded), [*next(encoded), tokenizer.eos_token_id]
            given = [*blank, *given] if passage.context else given
            length, start, continuation = len(given) + len(said), len(ids), continuation + 1
            ids += [*given, *said]
            position += range(context, context + length)
            source += [context - 1, *range(start, start + length - 1)]
            owner += [continuation] * length
            answer += [0] * len(given) + [int(bool(prompt))] * len(said)
        laid.append(_Laid((ids, position, source, [number] * len(ids), owner, answer)))
    return _stack(laid, tokenizer.pad_token_id)


def _stack(laid: Sequence[_Laid], pad: int) -> PassageBatch:
    width = max(ROW, *map(len, laid))
    rows: list[list[_Laid]] = []
    # First fit, longest first: about a tenth of the tokens is padding, where one passage a row wastes half.
    for passage in sorted(laid, key=len, reverse=True):
        row = next((row for row in rows if sum(map(len, row)) + len(passage) <= width), None)
        if row is None:
            rows.append(row := [])
        row.append(passage)
    fills = (pad, 0, 0, 0, 0, 0)
    tensors = []
    for column, fill in enumerate(fills):
        table = torch.full((len(rows), width), fill)
        for index, row in enumerate(rows):
            start = 0
            for passage in row:
                shift = start if column == 2 else 0
                table[index, start : start + len(passage)] = torch.tensor(passage.columns[column]) + shift
                start += len(passage)
        tensors.append(table)
    ids, position, source, owner, continuation, answer = tensors
    return PassageBatch(ids, position, source, owner, continuation, answer.bool())
