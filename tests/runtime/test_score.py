"""Scores by teacher forcing say what generation would do, and what transformers' own loss says."""

import pytest
import torch

from pmemx.base_model.bundled import BundledBaseModel
from pmemx.core.domain import Example
from pmemx.core.encoding import collate, encode
from pmemx.data.procedural import ProceduralWorld
from pmemx.runtime.generate import generate
from pmemx.runtime.score import score


@pytest.fixture(scope="module")
def base():
    return BundledBaseModel().load()


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """Some that the base answers, some that it does not."""
    corpus = ProceduralWorld(documents_per_domain=2, unknown_train=10, unknown_test=10, items_train=10).load()
    return [*corpus.domain("law").train[:20], *corpus.general.test[:30]]


def test_exact_is_what_greedy_generation_says(base, examples):
    rows = [encode(base.tokenizer, example, with_document=False) for example in examples]
    scored = score(base.model, rows, pad=base.tokenizer.pad_token_id)
    said = generate(base.model, base.tokenizer, rows, max_new_tokens=8)
    gold = [row.ids[row.prompt_length : -1] for row in rows]
    same = [answer == truth for answer, truth in zip(said, gold, strict=True)]
    assert [row.exact for row in scored] == same
    assert any(same) and not all(same)


def test_nats_equal_the_loss_of_transformers(base, examples):
    row = encode(base.tokenizer, examples[0], with_document=True)
    batch = collate([row], base.tokenizer.pad_token_id)
    labels = batch.ids.masked_fill(~batch.answer, -100)
    with torch.no_grad():
        expected = base.model(batch.ids, labels=labels).loss.item()
    (scored,) = score(base.model, [row], pad=base.tokenizer.pad_token_id)
    assert scored.nats / scored.tokens == pytest.approx(expected, rel=1e-5)


def test_order_and_batching_change_nothing(base, examples):
    rows = [encode(base.tokenizer, example, with_document=False) for example in examples]
    one = score(base.model, rows, pad=base.tokenizer.pad_token_id, tokens_per_batch=1)
    many = score(base.model, rows[::-1], pad=base.tokenizer.pad_token_id)[::-1]
    assert [row.nats for row in one] == pytest.approx([row.nats for row in many], rel=1e-4, abs=1e-4)
    assert [row.hits for row in one] == [row.hits for row in many]


def test_a_model_does_not_diverge_from_itself(base, examples):
    rows = [encode(base.tokenizer, example, with_document=False) for example in examples]
    kept = score(base.model, rows, pad=base.tokenizer.pad_token_id, keep=True)
    reference = [row.log_probs for row in kept if row.log_probs is not None]
    again = score(base.model, rows, pad=base.tokenizer.pad_token_id, reference=reference)
    assert [row.kl for row in again] == [0.0] * len(rows)
