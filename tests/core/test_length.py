"""After fitting, no row is longer than the context, and the report says what that took."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from pmemx.core.domain import Corpus, Document, Domain, Example
from pmemx.core.encoding import encode
from pmemx.core.errors import DataError
from pmemx.core.length import fit_corpus


def words(name, number):
    return " ".join(f"{name}\u00e9{i}" for i in range(number))


@pytest.fixture(scope="module")
def tokenizer():
    """One token a word, and a mark at either end."""
    inner = Tokenizer(WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def byte_tokenizer():
    """One token a byte: no text can have more."""
    vocab = {symbol: i for i, symbol in enumerate(["<s>", "</s>", *sorted(ByteLevel.alphabet())])}
    inner = Tokenizer(BPE(vocab, []))
    inner.pre_tokenizer = ByteLevel(add_prefix_space=True)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


def row(identity, *, document=0, prompt=1, response=1):
    return Example(identity, words("p", prompt), words("r", response), words("d", document), group=identity)


def corpus(*train, general=(), documents=()):
    short = (row("short"),)
    domain = Domain("law", (*short, *train), (), short, documents)
    return Corpus((domain,), Domain("general", (*short, *general), (), short))


def split_report(report, domain="law", split="train"):
    return next(line for line in report.splits if (line.domain, line.split) == (domain, split))


SIZES = st.tuples(st.integers(0, 30), st.integers(1, 30), st.integers(1, 30))


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(SIZES, max_size=5), context=st.integers(8, 40), on_long=st.sampled_from(["drop", "truncate"]))
def test_no_row_is_longer_than_the_context_and_every_row_is_accounted_for(tokenizer, sizes, context, on_long):
    rows = [row(str(i), document=d, prompt=p, response=r) for i, (d, p, r) in enumerate(sizes)]
    fitted, report = fit_corpus(corpus(*rows, general=rows), tokenizer, context, on_long)
    for domain in fitted:
        for example in (*domain.train, *domain.test):
            assert len(encode(tokenizer, example, with_document=True).ids) <= context
    line = split_report(report)
    assert line.too_long == sum(2 + d + p + r > context for d, p, r in sizes) == line.truncated + line.dropped
    assert line.too_long_alone == sum(2 + p + r > context for _, p, r in sizes)
    assert len(fitted.domain("law").train) == line.rows - line.dropped


@settings(max_examples=25, deadline=None)
@given(sizes=SIZES, context=st.integers(8, 40))
def test_truncation_cuts_no_more_than_it_must_and_never_the_response(tokenizer, sizes, context):
    d, p, r = sizes
    fitted, _ = fit_corpus(corpus(row("x", document=d, prompt=p, response=r)), tokenizer, context, "truncate")
    kept = [example for example in fitted.domain("law").train if example.id == "x"]
    assert bool(kept) == (2 + r <= context)
    for example in kept:
        assert example.response == words("r", r)
        assert len(example.prompt.split()) == min(p, context - 2 - r)
        assert len(example.document.split()) == min(d, max(0, context - 2 - r - p))
        assert words("d", d).endswith(example.document)
        assert words("p", p).endswith(example.prompt)


@settings(max_examples=30, deadline=None)
@given(prompt=st.integers(0, 20), response=st.integers(1, 90), context=st.integers(8, 20))
def test_general_text_is_chunked_and_loses_no_word(tokenizer, prompt, response, context):
    text = row("story", prompt=prompt, response=response)
    fitted, report = fit_corpus(corpus(general=[text]), tokenizer, context, "error")
    chunks = fitted.general.train[1:]
    assert " ".join(f"{c.prompt} {c.response}".strip() for c in chunks) == f"{text.prompt} {text.response}".strip()
    assert {chunk.group for chunk in chunks} == {"story"}
    assert len({chunk.id for chunk in chunks}) == len(chunks)
    assert split_report(report, "general").chunked == (2 + prompt + response > context)


@settings(max_examples=25, deadline=None)
@given(text=st.text(alphabet="a \n\u00e9", min_size=1, max_size=40))
def test_text_of_one_token_a_byte_is_never_taken_for_shorter_than_it_is(byte_tokenizer, text):
    example = Example("x", "p", text)
    length = len(encode(byte_tokenizer, example, with_document=True).ids)
    _, report = fit_corpus(corpus(example), byte_tokenizer, 24, "truncate")
    assert split_report(report).too_long == (length > 24)


def test_a_corpus_that_fits_is_left_as_it_is(tokenizer):
    given_corpus = corpus(row("x", document=3, prompt=2), documents=(Document("d", "one two", ("two one",)),))
    fitted, report = fit_corpus(given_corpus, tokenizer, 64, "error")
    assert fitted == given_corpus
    assert report.too_long == 0
    assert str(report) == ""


def test_error_names_every_domain_and_split_with_its_count(tokenizer):
    long = [row(str(i), document=9) for i in range(3)] + [row("alone", prompt=9)]
    with pytest.raises(DataError) as caught:
        fit_corpus(corpus(*long), tokenizer, 8, "error")
    message = str(caught.value)
    assert "law train: 4 of 5 rows are longer than 8 tokens, 1 of them even without their document" in message
    assert "rows.on_long" in message
    assert "law test" not in message


def test_a_row_that_is_too_long_only_with_its_document_is_dropped_by_drop(tokenizer):
    fitted, report = fit_corpus(corpus(row("x", document=9)), tokenizer, 8, "drop")
    assert [example.id for example in fitted.domain("law").train] == ["short"]
    assert (split_report(report).dropped, split_report(report).too_long_alone) == (1, 0)


def test_a_domain_of_which_nothing_remains_is_an_error(tokenizer):
    domain = Domain("law", (row("x", prompt=20),), (), (row("y", prompt=20),))
    with pytest.raises(DataError, match=r"(?s)law: all 1 rows of train.*law: all 1 rows of test.*truncate"):
        fit_corpus(Corpus((domain,), Domain("general", (row("g"),), (), (row("h"),))), tokenizer, 8, "drop")


def test_a_long_document_is_cut_together_with_its_paraphrases(tokenizer):
    document = Document("d", words("t", 10), (words("s", 4),))
    fitted, _ = fit_corpus(corpus(documents=(document,)), tokenizer, 8, "error")
    first, second = fitted.domain("law").documents
    assert (first.id, first.paraphrases) == ("d/0", (words("s", 4),))
    assert f"{first.text} {second.text}" == document.text
    assert second.paraphrases == ()


def test_unknown_prompts_stay_unknown(tokenizer):
    whole = corpus()
    unknown = Domain("unknown", (row("u", response=0),), (), (row("v", response=0),))
    fitted, _ = fit_corpus(Corpus(whole.domains, whole.general, unknown), tokenizer, 16, "error")
    assert fitted.unknown == unknown


def test_a_context_of_a_few_tokens_is_refused(tokenizer):
    with pytest.raises(DataError, match="context is 4"):
        fit_corpus(corpus(), tokenizer, 4, "drop")
