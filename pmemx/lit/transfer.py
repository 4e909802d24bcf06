"""Transfer sets: the rows an expert is trained on, with the teacher's predictions computed once and kept."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from pmemx.core.base_model import LoadedBase
from pmemx.core.distill import Distill, Predictions
from pmemx.core.domain import Domain, Example
from pmemx.core.encoding import Encoded, collate, encode
from pmemx.core.errors import DataError
from pmemx.lit.expert import predict
from pmemx.lit.stream import Row
from pmemx.runtime.generate import generate

Responses = Literal["teacher", "gold"]


def training_rows(base: LoadedBase, domain: Domain, objective: Distill, responses: Responses) -> list[Row]:
    """What an expert of this domain is shown.

    Under an objective on documents: their texts and paraphrases, cut to the context. Otherwise the training prompts; with a
    teacher, the student sees the prompt alone while the teacher also reads the document, and says what the teacher says
    (responses "teacher", so that no gold answer is ever shown) or is compared with it on the gold response.
    """
    if objective.rows == "documents":
        return document_rows(base, domain)
    if not objective.needs_teacher:
        return [Row(encode(base.tokenizer, example, with_document=False)) for example in domain.train]
    if not domain.has_documents:
        raise DataError(
            f"domain {domain.name!r} has prompts without a document, so {type(objective).__name__} has no teacher for "
            f"them; give the rows a document, or distil the domain with an objective on gold answers (sft)"
        )
    taught = [encode(base.tokenizer, example, with_document=True) for example in domain.train]
    asked = [encode(base.tokenizer, example, with_document=False) for example in domain.train]
    if responses == "teacher":
        longest = max(len(row.ids) - row.prompt_length for row in taught) + 4
        end = (base.tokenizer.eos_token_id,)
        said = generate(base.model, base.tokenizer, taught, max_new_tokens=longest)
        taught = [
            Encoded((*row.ids[: row.prompt_length], *new, *end), row.prompt_length)
            for row, new in zip(taught, said, strict=True)
        ]
        asked = [
            Encoded((*row.ids[: row.prompt_length], *new, *end), row.prompt_length)
            for row, new in zip(asked, said, strict=True)
        ]
    targets = teach(base.model, taught, base.tokenizer.pad_token_id, hidden=objective.needs_hidden)
    for example, question, lesson in zip(domain.train, asked, taught, strict=True):
        if question.ids[question.prompt_length :] != lesson.ids[lesson.prompt_length :]:
            raise DataError(f"{example.id}: the tokenizer splits the response differently behind the document")
    return [Row(question, target) for question, target in zip(asked, targets, strict=True)]


def document_rows(base: LoadedBase, domain: Domain) -> list[Row]:
    """The domain's documents and their paraphrases as plain text, in pieces of at most the context."""
    if not domain.documents:
        raise DataError(f"domain {domain.name!r} has no documents to read; use an objective on answers (sft)")
    rows = []
    for document in domain.documents:
        for text in (document.text, *document.paraphrases):
            ids = encode(base.tokenizer, Example(document.id, "", text), with_document=False).ids
            rows += [Row(Encoded(ids[i : i + base.context], 0)) for i in range(0, len(ids), base.context)]
    return [row for row in rows if len(row.encoded.ids) > 1]


def anchor_rows(base: LoadedBase, general: Sequence[Example]) -> list[Row]:
    """The base's own text with the base as its teacher, for the locality term."""
    rows = [encode(base.tokenizer, example, with_document=False) for example in general]
    targets = teach(base.model, rows, base.tokenizer.pad_token_id, hidden=False)
    return [Row(row, target) for row, target in zip(rows, targets, strict=True)]


@torch.no_grad()
def teach(
    model: nn.Module, rows: Sequence[Encoded], pad: int, *, hidden: bool, batch_size: int = 64
) -> list[Predictions]:
    """What a model says at the answer tokens of every row; kept on the CPU."""
    device = next(model.parameters()).device
    # Rows of one length together, so that little is computed on padding.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    by_row: dict[int, Predictions] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collate([rows[i] for i in chosen], pad)
        said = predict(model, batch.to(device), hidden=hidden)
        counts = batch.answer.sum(dim=1).tolist()
        logits = said.logits.cpu().split(counts)
        states = said.hidden.cpu().split(counts, dim=1) if said.hidden is not None else [None] * len(chosen)
        by_row |= {i: Predictions(a, b) for i, a, b in zip(chosen, logits, states, strict=True)}
    return [by_row[i] for i in range(len(rows))]
