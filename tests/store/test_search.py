"""A search asks for what a card says, whatever its type, and means the same on every ledger."""

from collections.abc import Callable

import pytest

from pmemx.core.errors import ConfigError
from pmemx.core.lifecycle import SELECTABLE
from pmemx.store import catalogue
from pmemx.store.bank import Bank
from pmemx.store.governed import GovernedStore
from pmemx.store.life import Life
from pmemx.store.references import Name
from tests.store.banks import put

CARDS = {
    "law": {"recipe": {"lr": 0.1 + 0.2, "steps": 100, "deep": {"a b": "x"}}, "extra": {"team": "t1", "done": True}},
    "finance": {"recipe": {"lr": 1e-05, "note": '"t1"'}, "extra": {"team": 'it\'s "☃"', "done": False, "0": "zero"}},
    "medicine": {"ttl": 60.0, "sources": ("p1", "p2"), "extra": {"nested": {"team": "t1"}, "nothing": None}},
}
WANTED = [
    ({"extra.team": "t1"}, {"law"}),
    ({"extra.team": 'it\'s "☃"'}, {"finance"}),
    ({"extra.nested.team": "t1"}, {"medicine"}),
    ({"extra.nested": '{"team":"t1"}'}, {"medicine"}),
    ({"extra.0": "zero"}, {"finance"}),
    ({"extra.done": "true"}, {"law"}),
    ({"extra.done": "false"}, {"finance"}),
    ({"recipe.lr": "0.30000000000000004"}, {"law"}),
    ({"recipe.lr": "1e-05"}, {"finance"}),
    ({"recipe.steps": "100"}, {"law"}),
    ({"recipe.deep.a b": "x"}, {"law"}),
    ({"recipe.note": '"t1"'}, {"finance"}),
    ({"sources": '["p1","p2"]'}, {"medicine"}),
    ({"sources.0": "p1"}, set()),
    ({"ttl": "60.0"}, {"medicine"}),
    ({"ttl": "null"}, {"law", "finance"}),
    ({"extra.nothing": "null"}, {"law", "finance", "medicine"}),  # what a card lacks is null
    ({"extra.team": "t"}, set()),
    ({"extra.team": "%"}, set()),
    ({"extra.team": "t1", "recipe.steps": "100"}, {"law"}),
    ({"extra.team": "t1", "recipe.steps": "1"}, set()),
    ({"extra.team": "t1", "domain": "domain of law"}, {"law"}),
    ({"version": "2"}, {"law"}),
    ({"version": "1", "uses": "0", "last used": "", "expires": "", "state": "generated"}, {"finance"}),
    ({"name": "shared/law", "tags": "trial, prod@1, stable@1"}, {"law"}),
    ({"name": "team:x/law"}, set()),
    ({"tags": "stable@2"}, set()),
    ({"tags": ""}, {"finance", "medicine"}),
    ({"digest": "0"}, set()),
]


@pytest.fixture
def bank(new_bank: Callable[[], Bank]) -> Bank:
    """A bank with those cards."""
    bank = new_bank()
    store = GovernedStore(bank.path, bank.database)
    for number, (name, card) in enumerate(CARDS.items(), start=1):
        put(store, name, float(number), **card)
    store.tag("law", "stable")
    store.tag("law", "prod")
    put(store, "law", 9.0, **CARDS["law"])
    store.tag("law", "trial")
    return bank


def test_a_search_by_any_field_of_the_card_finds_those_that_have_it(bank: Bank):
    with bank.ledger.reading() as now:
        found = [{line.name for line in catalogue.listing(now, where=where)} for where, _ in WANTED]
    assert found == [names for _, names in WANTED]


def test_a_field_that_no_card_can_have_is_refused(bank: Bank):
    with bank.ledger.reading() as now:
        with pytest.raises(ConfigError, match="no card has a field 'recip'; did you mean 'recipe'"):
            catalogue.listing(now, where={"recip": "x"})
        # SQLite has no way to name it.
        with pytest.raises(ConfigError, match="a double quote in its name"):
            catalogue.listing(now, where={'extra.a"b': "x"})


def test_a_list_is_in_the_order_of_names_with_the_tags_of_the_latest_version(bank: Bank):
    with bank.ledger.reading() as now:
        lines = catalogue.listing(now)
    assert [(line.name, line.number, line.tags, line.other_tags) for line in lines] == [
        ("finance", 1, (), ()),
        ("law", 2, ("trial",), (("prod", 1), ("stable", 1))),
        ("medicine", 1, (), ()),
    ]
    with bank.at(5).ledger.reading() as then:  # three blocks and two tags later
        assert [(line.name, line.number, line.tags) for line in catalogue.listing(then)] == [
            ("finance", 1, ()),
            ("law", 1, ("prod", "stable")),
            ("medicine", 1, ()),
        ]


def test_pages_joined_are_the_list_in_the_order_of_code_points(bank: Bank):
    store = GovernedStore(bank.path, bank.database)
    for number, name in enumerate(("Zeta", "alpha", "_x", "10", "9", "é", "日本", "a b", "A")):
        put(store, name, float(number))
        put(GovernedStore(bank.path, bank.database, namespace="team:x"), name, float(number))
    with bank.ledger.reading() as now:
        whole = catalogue.listing(now)
        for limit in (1, 4, 100):
            joined, after = [], None
            while page := catalogue.listing(now, after=after, limit=limit):
                assert len(page) <= limit
                joined += page
                after = Name(page[-1].namespace, page[-1].name)
            assert joined == whole
        assert [line.name for line in catalogue.listing(now, text="a", limit=2)] == [
            "10",
            "9",
        ]  # "domain of ..." has an a
        for limit in (0, -1, 2**40):
            with pytest.raises(ConfigError, match="at least 1 line"):
                catalogue.listing(now, limit=limit)


def test_names_that_may_be_chosen_are_those_of_the_list(bank: Bank):
    store = GovernedStore(bank.path, bank.database, principal="root")
    life = Life(store.bank)
    put(store, "icy", 1.0)
    put(store, "old", 2.0)
    life.freeze("icy")
    life.archive("old")
    with bank.ledger.reading() as now:
        lines = catalogue.listing(now, states=SELECTABLE)
    assert bank.names() == tuple(sorted(line.full_name for line in lines))
    assert "old" not in bank.names()
