"""The boundary between prompt and response, for a tokenizer of words and one of pieces."""

import os
from pathlib import Path

import pytest
import torch

from pmemx.base_model.bundled import BundledBaseModel
from pmemx.core.domain import Example
from pmemx.core.encoding import Encoded, collate, encode
from pmemx.core.errors import DataError


def tokenizers():
    from transformers import AutoTokenizer

    yield BundledBaseModel().load().tokenizer
    real = Path(os.environ.get("PMEMX_REAL_DATA", Path(__file__).parents[3] / "shared")) / "models" / "stories260k"
    if real.exists():
        yield AutoTokenizer.from_pretrained(real)


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=lambda t: str(len(t)))
def test_what_is_given_and_what_is_said_make_up_the_text(tokenizer):
    example = Example("1", "Which court heard Orsted Appeal?", "Federal Court", document="Notes.")
    for with_document in (False, True):
        row = encode(tokenizer, example, with_document=with_document)
        given, said = row.ids[: row.prompt_length], row.ids[row.prompt_length :]
        assert given[0] == tokenizer.bos_token_id and said[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(said, skip_special_tokens=True).strip() == "Federal Court"
        assert tokenizer.decode(given, skip_special_tokens=True).strip().endswith("heard Orsted Appeal?")
        assert ("Notes" in tokenizer.decode(given)) == with_document


def test_an_empty_prompt_leaves_everything_to_be_said():
    tokenizer = BundledBaseModel().load().tokenizer
    row = encode(tokenizer, Example("1", "", "a story"), with_document=False)
    assert row.prompt_length == 1


def test_answers_by_hand():
    batch = collate([Encoded((1, 5, 6, 7), 2), Encoded((1, 8), 1)], pad=0)
    assert batch.answer.tolist() == [[False, False, True, True], [False, True, False, False]]
    assert batch.labels.tolist() == [6, 7, 8]
    # What predicts an answer token stands one position before it.
    assert batch.at_answers(torch.arange(8).view(2, 4)).tolist() == [1, 2, 4]


def test_no_rows_are_refused():
    with pytest.raises(DataError, match="at least one row"):
        collate([], pad=0)
