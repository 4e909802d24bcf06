"""Prompts that no available expert covers: of a domain whose expert is away, and passages of general text of every length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pmemx.core.base_model import LoadedBase
from pmemx.core.domain import Example
from pmemx.core.encoding import Encoded, encode
from pmemx.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class UncoveredPrompts:
    """How many of such prompts every gate is shown.

    lengths: of passages, in tokens; those beyond the context of the base are left out. passages: of each length, at most.
    questions: held-out ones of each domain, asked while its own expert is barred.
    """

    lengths: Sequence[int] = (16, 32, 64, 128, 256, 512)
    passages: int = 48
    questions: int = 40

    def __post_init__(self) -> None:
        for name, least in (("passages", 1), ("questions", 1), ("lengths", 2)):
            value = getattr(self, name)
            for one in value if name == "lengths" else [value]:
                if one < least:
                    raise ConfigError(f"stage.evaluate.uncovered.{name} holds {one}; give numbers from {least}")

    def of_lengths(
        self, base: LoadedBase, examples: Sequence[Example]
    ) -> Iterator[tuple[int, list[tuple[str, Encoded]]]]:
        """Passages by their length, each with the group of the text in which it begins.

        The examples, prompt and response, are read one after the other as one text, from which passages are cut at even
        distances without overlap: they begin anywhere, and one that is longer than a text goes on into the next.
        """
        start = [] if base.tokenizer.bos_token_id is None else [base.tokenizer.bos_token_id]
        end = 0 if base.tokenizer.eos_token_id is None else 1
        tokens: list[int] = []
        groups: list[str] = []
        for example in examples:
            whole = f"{example.prompt} {example.response}".strip()
            ids = encode(base.tokenizer, Example(example.id, "", whole), with_document=False).ids
            tokens += ids[len(start) : len(ids) - end]
            groups += [example.group or example.id] * (len(tokens) - len(groups))
        for length in self.lengths:
            own = length - len(start)
            number = min(self.passages, len(tokens) // own)
            if length > base.context or not number:
                continue
            places = [i * (len(tokens) - own) // max(1, number - 1) for i in range(number)]
            rows = [(*start, *tokens[place : place + own]) for place in places]
            yield length, [(groups[place], Encoded(row, length)) for place, row in zip(places, rows, strict=True)]
