"""Laws of packed passages: a continuation is read as if it stood alone behind its context."""

import random

import pytest
import torch

from pmemx.base_model.llama import UntrainedLlama
from pmemx.base_model.word_tokenizer import word_tokenizer
from pmemx.core.domain import Example
from pmemx.core.encoding import encode
from pmemx.data.world.pretraining import Mix
from pmemx.data.world.vocabulary import PUNCTUATION, vocabulary
from pmemx.lit.passages import batch_passages
from pmemx.lit.pretrain import PretrainModule, PretrainSettings


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(vocabulary(), PUNCTUATION, context=256)


@pytest.fixture(scope="module")
def passages():
    stream = Mix(world=0.5, records=0.2).passages(random.Random(0))
    return [next(stream) for _ in range(9)]


def alone(tokenizer, passage, prompt, response):
    return encode(tokenizer, Example("x", prompt, response, passage.context), with_document=True)


def test_tokens_of_a_continuation_are_those_of_an_encoded_example(tokenizer, passages):
    batch = batch_passages(tokenizer, passages)
    number = 0
    for index, passage in enumerate(passages, 1):
        for prompt, response in passage.continuations:
            number += 1
            mine = (batch.passage == index) & ((batch.continuation == 0) | (batch.continuation == number))
            encoded = alone(tokenizer, passage, prompt, response)
            assert batch.ids[mine].tolist() == list(encoded.ids)
            assert batch.position[mine].tolist() == list(range(len(encoded.ids)))
            if prompt:
                assert int(batch.answer[mine].sum()) == len(encoded.ids) - encoded.prompt_length


def test_packed_predictions_equal_those_of_each_text_alone(tokenizer, passages):
    torch.manual_seed(0)
    module = PretrainModule(
        UntrainedLlama(width=32, mlp=32, layers=2).build(vocabulary(), PUNCTUATION)[0], PretrainSettings()
    ).eval()
    batch = batch_passages(tokenizer, passages)
    with torch.no_grad():
        packed = module.logits(batch, batch.answer)
        expected = []
        for passage in passages:
            for prompt, response in passage.continuations:
                if prompt:
                    encoded = alone(tokenizer, passage, prompt, response)
                    logits = module.model(torch.tensor([encoded.ids])).logits[0]
                    expected.append((alone_id(encoded), logits[encoded.prompt_length - 1 : -1]))
    owner = batch.continuation[batch.answer]
    for number, (ids, logits) in zip(owner.unique(), expected, strict=True):
        assert batch.ids[batch.answer][owner == number].tolist() == ids
        torch.testing.assert_close(packed[owner == number], logits, atol=1e-4, rtol=1e-4)


def alone_id(encoded):
    return list(encoded.ids[encoded.prompt_length :])


def test_weights_are_zero_on_padding_and_on_first_tokens(tokenizer, passages):
    batch = batch_passages(tokenizer, passages)
    weight = batch.weight(0.1)
    assert (weight[batch.passage == 0] == 0).all() and (weight[batch.answer] == 1).all()
    assert int((weight > 0).sum()) == int((batch.passage > 0).sum()) - len(passages)


def test_exact_is_true_only_where_every_response_token_is_the_arg_max(tokenizer, passages):
    module = PretrainModule(
        UntrainedLlama(width=32, mlp=32, layers=1).build(vocabulary(), PUNCTUATION)[0], PretrainSettings()
    ).eval()
    batch = batch_passages(tokenizer, passages)
    numbers = batch.continuation[batch.answer].unique().tolist()
    spoiled = numbers[1]

    def perfect(batch, chosen):
        logits = torch.nn.functional.one_hot(batch.ids[chosen], len(tokenizer)).float()
        last = torch.nonzero(batch.continuation[chosen] == spoiled)[-1]
        logits[last] = logits[last].roll(1, -1)
        return logits

    module.logits = perfect
    assert module.exact(batch).tolist() == [number != spoiled for number in numbers]
