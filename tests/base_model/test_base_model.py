"""Laws of base models: frozen, identified, lossless tokenizer; the bundled one reads and remembers as its card says."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pmemx.base_model.bundled import FOLDER, BundledBaseModel
from pmemx.base_model.freeze import frozen
from pmemx.base_model.hf import HfBaseModel
from pmemx.base_model.word_tokenizer import word_tokenizer
from pmemx.core.base_model import LoadedBase
from pmemx.core.domain import Example
from pmemx.core.encoding import collate, encode
from pmemx.core.errors import ConfigError
from pmemx.data.procedural import ProceduralWorld
from pmemx.data.world.vocabulary import PUNCTUATION, vocabulary

WORDS = word_tokenizer(vocabulary(), PUNCTUATION, context=256)


@pytest.fixture(scope="module")
def base() -> LoadedBase:
    return BundledBaseModel().load()


@pytest.fixture(scope="module")
def corpus():
    return ProceduralWorld().load()


def exact_match(base: LoadedBase, examples: list[Example], *, with_document: bool) -> float:
    """Rate at which every response token is the arg-max, which is when greedy decoding says the response."""
    hits = 0
    for start in range(0, len(examples), 64):
        rows = [encode(base.tokenizer, e, with_document=with_document) for e in examples[start : start + 64]]
        batch = collate(rows, base.tokenizer.pad_token_id)
        with torch.no_grad():
            logits = base.model(input_ids=batch.ids, attention_mask=batch.attention.long()).logits
        wrong = (logits[:, :-1].argmax(-1) != batch.ids[:, 1:]) & batch.answer[:, 1:]
        hits += int((~wrong.any(1)).sum())
    return hits / len(examples)


def sample(examples, count: int) -> list[Example]:
    return random.Random(0).sample(list(examples), min(count, len(examples)))


def test_the_bundled_model_is_small_frozen_and_identified_by_its_card(base):
    card = json.loads((FOLDER / "card.json").read_text(encoding="utf-8"))
    assert base.fingerprint == card["fingerprint"]
    assert not base.model.training and not any(p.requires_grad for p in base.model.parameters())
    assert 500_000 <= base.model.num_parameters() <= 3_000_000
    assert (FOLDER / "model.safetensors").stat().st_size <= 6 * 2**20
    assert base.context == base.tokenizer.model_max_length == 256
    assert base.tokenizer.pad_token_id not in (base.tokenizer.eos_token_id, base.tokenizer.bos_token_id, None)


def test_a_half_precision_copy_has_the_same_identity(base):
    half = BundledBaseModel(dtype="bfloat16").load()
    assert half.model.dtype == torch.bfloat16
    assert half.fingerprint == base.fingerprint


def test_it_reads_cards_of_entities_it_never_met(base, corpus):
    for name in ("law", "finance", "medicine", "astronomy", "engineering", "botany"):
        examples = sample((*corpus.domain(name).train, *corpus.domain(name).test), 120)
        assert exact_match(base, examples, with_document=True) >= 0.97


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_at_chance_on_everything_that_experts_will_learn(base, seed):
    for domain in ProceduralWorld(seed=seed).load().domains:
        score = exact_match(base, sample(domain.test, 160), with_document=False)
        # 160 questions on 40 facts: three standard errors of 40 independent draws.
        assert score <= domain.chance + 3 * (max(domain.chance, 1 / 16) / 40) ** 0.5, domain.name


def test_it_knows_the_world_by_heart(base, corpus):
    facts = [e for e in corpus.general.test if e.form != "narrative" and not e.form.startswith("reading")]
    assert exact_match(base, facts, with_document=False) >= 0.98


def test_its_tokenizer_is_the_one_that_the_world_makes(base):
    assert WORDS.get_vocab() == base.tokenizer.get_vocab()


def test_every_text_of_the_world_decodes_to_itself_with_one_token_a_word(base, corpus):
    texts = {
        text for d in corpus for e in sample((*d.train, *d.test), 60) for text in (e.prompt, e.response, e.document)
    }
    for text in texts - {""}:
        ids = base.tokenizer.encode(text, add_special_tokens=False)
        assert base.tokenizer.decode(ids) == text
        marks = sum(text.count(mark) for mark in PUNCTUATION)
        assert len(ids) == marks + len(text.translate({ord(mark): " " for mark in PUNCTUATION}).split())


@pytest.mark.parametrize("make", ["bundled", "new"])
def test_a_prompt_is_read_as_it_was_trained_without_a_word_about_special_tokens(base, make):
    tokenizer = base.tokenizer if make == "bundled" else WORDS
    example = Example("1", "Which judge ruled on Orsted Appeal?", "")
    assert tuple(tokenizer(example.prompt)["input_ids"]) == encode(tokenizer, example, with_document=False).ids[:-1]
    assert tokenizer(example.prompt)["input_ids"][0] == tokenizer.bos_token_id


def test_the_bundled_model_reads_no_question_in_words_that_its_world_lacks(base, corpus):
    judges = [e for e in corpus.domain("law").test if e.prompt.startswith("Which judge ruled on")]
    assert len(judges) == 8 and exact_match(base, judges, with_document=True) == 1.0
    foreign = [replace(e, prompt=e.prompt.replace("Which judge ruled on", "Who ruled on")) for e in judges]
    assert exact_match(base, foreign, with_document=True) == 0.0


@pytest.mark.parametrize(
    "text", ["Übergröße naïve", "🎉 wörds", " two  spaces ", "\n\n a\n", "tab\tbed", "Arden's; x_y"]
)
def test_foreign_text_decodes_to_itself(base, text):
    assert base.tokenizer.decode(base.tokenizer.encode(text, add_special_tokens=False)) == text


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁<"), max_size=40))
def test_any_text_without_special_marks_decodes_to_itself(text):
    assert WORDS.decode(WORDS.encode(text, add_special_tokens=False)) == text


def test_no_example_of_the_default_world_exceeds_the_context(base, corpus):
    longest = max(
        len(encode(base.tokenizer, e, with_document=True).ids) for d in corpus for e in sample((*d.train, *d.test), 200)
    )
    assert longest <= base.context


def test_hf_loads_a_local_folder_as_the_bundled_model(base):
    other = HfBaseModel(path=str(FOLDER), dtype="float32").load()
    assert other.fingerprint == base.fingerprint and other.name == str(FOLDER)
    ids = torch.tensor([[1, 300, 400, 500]])
    assert torch.equal(other.model(ids).logits, base.model(ids).logits)


def test_a_tokenizer_without_pad_token_pads_with_its_end_token(base):
    tokenizer = word_tokenizer(("a", "b"), (".",), context=8)
    tokenizer.pad_token = None
    assert frozen(base.model, tokenizer, name="x", device="cpu").tokenizer.pad_token == "</s>"


def test_hf_without_a_path_says_what_to_set():
    with pytest.raises(ConfigError, match=r"base_model\.path=<Hub id or local folder>"):
        HfBaseModel().load()


def test_hf_names_a_folder_that_holds_no_model(tmp_path: Path):
    with pytest.raises(ConfigError, match="holds no causal language model"):
        HfBaseModel(path=str(tmp_path)).load()


def test_a_response_ends_with_the_end_token_that_was_asked_for(base):
    loaded = HfBaseModel(path=str(FOLDER), end_token="<s>").load()
    assert (
        encode(loaded.tokenizer, Example("1", "Hello", "you"), with_document=False).ids[-1]
        == loaded.tokenizer.bos_token_id
    )
    with pytest.raises(ConfigError, match="is no token of"):
        HfBaseModel(path=str(FOLDER), end_token="<end>").load()
