"""Texts to passages that fit, and passages to a prompt and its continuation."""

import re
from collections.abc import Callable

_BREAKS = ("\n\n", "\n", ". ", " ")


def cut(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Consecutive passages that fit, ended at a paragraph, else a line, else a sentence, else a word.

    fits must hold for any single character. White space between passages is left out, everything else is kept.
    """
    passages = []
    text = text.strip()
    while text:
        size = _longest(text, fits)
        whole = text[:size]
        # A break in the first half would leave a needlessly short passage: there a lesser break further on is better.
        ends = [whole.rfind(mark, size // 2) for mark in _BREAKS] if size < len(text) else []
        nice = (whole[: end + 1].rstrip() for end in ends if end > 0)
        passage = next((part for part in nice if fits(part)), whole)
        passages.append(passage.rstrip())
        text = text[len(passage) :].lstrip()
    return passages


def divide(passage: str, prompt_words: int) -> tuple[str, str]:
    """Prompt and continuation, such that f"{prompt} {continuation}" is the passage again.

    The prompt ends at the first single space after `prompt_words` words, in a shorter passage at the middle one of its
    single spaces; it is empty when no words are parted by a single space.
    """
    spaces = [match.start() for match in re.finditer(r"(?<=\S) (?=\S)", passage)]
    if not spaces:
        return "", passage
    space = spaces[len(spaces) // 2]
    if len(passage.split()) >= 2 * prompt_words:
        space = next((end for end in spaces if len(passage[:end].split()) >= prompt_words), space)
    return passage[:space], passage[space + 1 :]


def _longest(text: str, fits: Callable[[str], bool]) -> int:
    low, high = 1, 64
    while high < len(text) and fits(text[:high]):
        low, high = high, 2 * high
    high = min(high, len(text)) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(text[:middle]) else (low, middle)
    return low
