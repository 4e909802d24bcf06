"""The corpus as the stages of a run see it: fitted to the context of the base model, and no larger than asked for."""

import random
from dataclasses import dataclass, replace
from typing import Literal

from pmemx.core.base_model import LoadedBase
from pmemx.core.domain import Corpus, Domain, DomainSource, Example
from pmemx.core.errors import ConfigError
from pmemx.core.length import fit_corpus


@dataclass(frozen=True, kw_only=True)
class Rows:
    """How much of a corpus a run uses; null uses all.

    domains: the first so many. train, test: rows of each split of each domain, drawn with the corpus's own names as seed.
    on_long: what happens to a row longer than the base model's context: refused with a count, dropped, or cut.
    """

    domains: int | None = None
    train: int | None = None
    test: int | None = None
    on_long: Literal["error", "drop", "truncate"] = "error"

    def __post_init__(self) -> None:
        for name in ("domains", "train", "test"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"rows.{name} = {value} leaves nothing; give a number from 1, or null for all")

    def load(self, data: DomainSource, base: LoadedBase, notes: list[str] | None = None) -> Corpus:
        """The same settings give the same corpus. Raises DataError on rows that are too long.

        What was dropped, cut or divided because of its length is counted in lines added to `notes`.
        """
        corpus = data.load()
        corpus = replace(corpus, domains=corpus.domains[: self.domains]).map(self._cut)
        fitted, report = fit_corpus(corpus, base.tokenizer, base.context, self.on_long)
        if notes is not None and report.too_long:
            notes.extend(str(report).splitlines())
        return fitted

    def _cut(self, domain: Domain) -> Domain:
        return replace(
            domain,
            train=_draw(domain.train, self.train, domain.name),
            validation=_draw(domain.validation, self.test, domain.name),
            test=_draw(domain.test, self.test, domain.name),
        )


def _draw(rows: tuple[Example, ...], number: int | None, name: str) -> tuple[Example, ...]:
    if number is None or len(rows) <= number:
        return rows
    chosen = sorted(random.Random(f"rows:{name}").sample(range(len(rows)), number))
    return tuple(rows[i] for i in chosen)
