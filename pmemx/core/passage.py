"""Texts to passages that fit, and passages to a prompt and its continuation."""

import random
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

    The prompt ends at the first single space after `prompt_words` words; in a passage of which less than a quarter would be
    left, at the middle one of its single spaces. It is empty when no words are parted by a single space.
    """
    spaces = [match.start() for match in re.finditer(r"(?<=\S) (?=\S)", passage)]
    if not spaces:
        return "", passage
    space = spaces[len(spaces) // 2]
    if 3 * len(passage.split()) >= 4 * prompt_words:
        space = next((end for end in spaces if len(passage[:end].split()) >= prompt_words), space)
    return passage[:space], passage[space + 1 :]


def divide_anywhere(passage: str, fewest_words: int, generator: random.Random) -> tuple[str, str]:
    """`divide` at a place that is drawn: prompts of all lengths from `fewest_words` to three quarters of the passage."""
    words = len(passage.split())
    return divide(passage, generator.randint(fewest_words, max(fewest_words, 3 * words // 4)))


def halved_anywhere(passage: str, fewest_words: int, generator: random.Random) -> list[str]:
    """Every other passage in two at a drawn word, so that passages begin anywhere in a text; short ones stay whole."""
    spaces = [match.start() for match in re.finditer(r"(?<=\S) (?=\S)", passage)]
    inner = spaces[fewest_words:-fewest_words]
    if not inner or generator.random() < 0.5:
        return [passage]
    space = generator.choice(inner)
    return [passage[:space], passage[space + 1 :]]


def _longest(text: str, fits: Callable[[str], bool]) -> int:
    low, high = 1, 64
    while high < len(text) and fits(text[:high]):
        low, high = high, 2 * high
    high = min(high, len(text)) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(text[:middle]) else (low, middle)
    return low
