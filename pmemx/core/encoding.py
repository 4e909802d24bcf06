"""Examples to token ids, with the boundary between what a model is given and what it must say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from pmemx.core.domain import Example
from pmemx.core.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """Token ids of one example; the first `prompt_length` are given, the rest must be said."""

    ids: tuple[int, ...]
    prompt_length: int


def encode(tokenizer: "PreTrainedTokenizerBase", example: Example, *, with_document: bool) -> Encoded:
    """[bos] + (document + blank line) + prompt + space + response + [eos].

    The boundary is that of the text, for any tokenizer: a token that spans prompt and response counts as response.
    An empty prompt gives a text of which everything but bos must be said.
    """
    given = f"{example.document}\n\n{example.prompt}" if with_document and example.document else example.prompt
    prompt_ids = _ids(tokenizer, given) if given else []
    whole = f"{given} {example.response}" if given and example.response else given or example.response
    ids = _ids(tokenizer, whole)
    shared = next((i for i, (a, b) in enumerate(zip(prompt_ids, ids, strict=False)) if a != b), len(prompt_ids))
    start, end = _present(tokenizer.bos_token_id), _present(tokenizer.eos_token_id)
    return Encoded((*start, *ids, *end), len(start) + min(shared, len(ids)))


def _present(token: Any) -> list[int]:
    return [] if token is None else [token]


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    # verbose: a text that is too long is the caller's to find, in core.length.
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # type: ignore[assignment]
    return ids


@dataclass(frozen=True, eq=False)
class Batch:
    """Right-padded rows. prompt marks the given tokens, answer the tokens that must be said; both are false on padding."""

    ids: Int[Tensor, "batch token"]
    attention: Bool[Tensor, "batch token"]
    prompt: Bool[Tensor, "batch token"]

    @property
    def answer(self) -> Bool[Tensor, "batch token"]:
        """Tokens that must be said. The first token of a row can never be: nothing precedes it."""
        answer = self.attention & ~self.prompt
        answer[:, 0] = False
        return answer

    @property
    def labels(self) -> Int[Tensor, " position"]:
        """The answer tokens of all rows, row by row."""
        return self.ids[self.answer]

    def at_answers(self, per_token: Tensor) -> Tensor:
        """What a model says where it predicts an answer token: [batch, token, ...] to [position, ...]."""
        return per_token[:, :-1][self.answer[:, 1:]]

    def to(self, device: torch.device) -> "Batch":
        """The same rows on another device."""
        return Batch(self.ids.to(device), self.attention.to(device), self.prompt.to(device))


def collate(rows: Sequence[Encoded], pad: int) -> Batch:
    """Pad on the right to the longest row. Raises DataError on no rows."""
    if not rows:
        raise DataError("a batch needs at least one row")
    length = max(len(row.ids) for row in rows)
    ids = torch.tensor([[*row.ids, *[pad] * (length - len(row.ids))] for row in rows])
    position = torch.arange(length)
    lengths = torch.tensor([len(row.ids) for row in rows])
    prompts = torch.tensor([row.prompt_length for row in rows])
    return Batch(ids, position < lengths[:, None], position < prompts[:, None])
