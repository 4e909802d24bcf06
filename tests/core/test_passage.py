"""Texts are cut without loss, and divided such that encoding joins them again."""

from hypothesis import given
from hypothesis import strategies as st

from pmemx.core.passage import cut, divide

TEXTS = st.text(alphabet="ab .\n\u00e9", max_size=400)


@given(text=TEXTS, size=st.integers(1, 50))
def test_passages_fit_and_lose_nothing_but_white_space(text, size):
    passages = cut(text, lambda part: len(part) <= size)
    assert all(0 < len(passage) <= size for passage in passages)
    assert "".join("".join(passages).split()) == "".join(text.split())


@given(text=TEXTS, words=st.integers(1, 10))
def test_prompt_and_continuation_are_the_passage_again(text, words):
    passage = text.strip()
    prompt, continuation = divide(passage, words)
    assert passage == (f"{prompt} {continuation}" if prompt else continuation)


def test_a_paragraph_is_a_better_end_than_a_sentence_and_a_sentence_than_a_word():
    assert cut("one two. three\n\nfour five", lambda part: len(part) <= 20) == ["one two. three", "four five"]
    assert cut("one two. three four five", lambda part: len(part) <= 14) == ["one two.", "three four", "five"]


def test_a_break_in_the_first_half_is_passed_over_for_a_later_one():
    assert cut("one\n\ntwo three four five", lambda part: len(part) <= 20) == ["one\n\ntwo three four", "five"]


def test_the_prompt_has_the_words_that_were_asked_for():
    assert divide("one two three four five six", 2) == ("one two", "three four five six")


def test_a_short_passage_is_divided_in_the_middle():
    assert divide("one two three", 16) == ("one two", "three")


def test_a_single_word_has_no_prompt():
    assert divide("one", 1) == ("", "one")
