"""How much of a corpus a run uses, and what it says about rows that are too long."""

from dataclasses import dataclass, replace

import pytest

from pmemx.base_model.bundled import BundledBaseModel
from pmemx.core.digest import digest
from pmemx.core.domain import Corpus, Domain, DomainSource, Example
from pmemx.core.errors import ConfigError, DataError
from pmemx.stage.corpus import Rows


def rows(name: str, count: int, words: int = 3) -> tuple[Example, ...]:
    return tuple(Example(f"{name}/{i}", "the " * words + str(i), "town", group=str(i)) for i in range(count))


@dataclass(frozen=True)
class Made(DomainSource):
    long: int = 0

    def load(self) -> Corpus:
        domains = tuple(Domain(name, rows(name, 20), (), rows(name, 10)) for name in ("a", "b", "c"))
        first = replace(domains[0], train=domains[0].train + rows("long", self.long, words=400))
        return Corpus((first, *domains[1:]), Domain("general", rows("g", 20), (), rows("g", 10)))


@pytest.fixture(scope="module")
def base():
    return BundledBaseModel().load()


def test_a_run_takes_as_many_domains_and_rows_as_asked_for(base):
    corpus = Rows(domains=2, train=5, test=3).load(Made(), base)
    assert [domain.name for domain in corpus.domains] == ["a", "b"]
    assert all(len(domain.train) == 5 and len(domain.test) == 3 for domain in corpus)


def test_the_same_settings_give_the_same_rows(base):
    assert digest(list(Rows(train=5).load(Made(), base))) == digest(list(Rows(train=5).load(Made(), base)))


def test_rows_that_are_too_long_are_refused_with_a_count(base):
    with pytest.raises(DataError, match="a train: 4 of 24 rows are longer than 256"):
        Rows().load(Made(long=4), base)


def test_rows_that_were_dropped_are_counted_in_a_note(base):
    notes: list[str] = []
    corpus = Rows(on_long="drop").load(Made(long=4), base, notes)
    assert len(corpus.domain("a").train) == 20
    assert len(notes) == 1 and "4 of 24 rows are longer than 256" in notes[0] and "4 dropped" in notes[0]


def test_no_row_at_all_is_refused():
    with pytest.raises(ConfigError, match=r"rows\.train = 0 leaves nothing"):
        Rows(train=0)
