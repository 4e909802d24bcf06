"""The rows that gates learn from: of every domain in turn, of general text, of negatives, and of prompts without an answer."""

from collections.abc import Sequence

from pmemx.core.base_model import LoadedBase
from pmemx.core.domain import Corpus, Domain
from pmemx.core.encoding import Encoded, encode
from pmemx.lit.gate_module import Source


def mixture_of(
    corpus: Corpus,
    base: LoadedBase,
    names: Sequence[str],
    *,
    per_domain: int,
    general: int,
    unknown: int = 0,
    negatives: int = 0,
) -> list[Source]:
    """Domain `names[i]` is choice 1 + i, the rest is choice 0; the numbers are rows of each kind in a batch."""

    def rows(domain: Domain) -> tuple[Encoded, ...]:
        return tuple(encode(base.tokenizer, example, with_document=False) for example in domain.train)

    sources = [Source(rows(corpus.domain(name)), number, per_domain) for number, name in enumerate(names, start=1)]
    sources.append(Source(rows(corpus.general), 0, general))
    if unknown and corpus.unknown is not None:
        sources.append(Source(rows(corpus.unknown), 0, unknown, speaks=False, resembles=True))
    if negatives and corpus.negatives is not None:
        sources.append(Source(rows(corpus.negatives), 0, negatives, speaks=False))
    return sources
