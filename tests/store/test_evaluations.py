"""Figures in the ledger, tags under a policy, and the rollback that an evaluation brings, on SQLite and PostgreSQL."""

import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmemx.core.access import Role
from pmemx.core.errors import AccessDenied, ConfigError, PolicyRefused, UnknownBlock
from pmemx.core.event import Action, Event
from pmemx.core.metric import Figure
from pmemx.core.promotion import Fall
from pmemx.core.tag_policy import Bound, TagPolicy
from pmemx.store.bank import Bank
from pmemx.store.evaluations import Evaluations
from pmemx.store.governed import GovernedStore
from pmemx.store.journal import Journal
from pmemx.store.life import Life
from pmemx.store.members import Members
from tests.store.banks import Hands, put

LOST = Bound(metric="lost", at_most=0.1)
GAINED = Bound(metric="gained", at_least=-0.05, relative=True, judged="value")
POLICY = TagPolicy(bounds=(LOST, GAINED))


def figure(value: float, half: float = 0.01) -> Figure:
    return Figure(value, value - half, value + half, 40, 8)


def good(gained: float = 1.0) -> dict[str, Figure]:
    return {"lost": figure(0.02), "gained": figure(gained)}


BAD = {"lost": figure(0.3)}


@pytest.fixture
def store(new_bank: Callable[[], Bank]) -> GovernedStore:
    bank = new_bank()
    return GovernedStore(bank.path, bank.database, principal="root", clock=Hands())


def as_principal(store: GovernedStore, name: str) -> GovernedStore:
    return replace(store, principal=name)


def chain(store: GovernedStore, *fills: float) -> None:
    """Versions 1, 2, ... of "law" that each took the protected tag in turn."""
    for fill in fills:
        version = put(store, "law", fill)
        store.promotions.record(version.digest, good())
        store.tag(version.digest, "stable")


def entries(store: GovernedStore, action: Action) -> tuple[Event, ...]:
    return Journal(store.bank).entries("law", action=action)


def test_figures_are_kept_by_version_and_the_newest_of_a_metric_counts(store):
    put(store, "law", 1.0)
    put(store, "law", 2.0)
    first = {"lost": Figure(0.1), "gained": Figure(1.0, 0.5, 1.5, 40, 8, 0.25, 2.0)}
    assert store.promotions.record("law@1", first, by="an exam") == ()
    store.promotions.record("law@1", {"lost": Figure(0.2)})
    assert store.promotions.of("law@1") == {"lost": Figure(0.2), "gained": first["gained"]}
    assert store.promotions.of("law@2") == {}
    assert [entry.detail["by"] for entry in entries(store, Action.EVALUATE)] == ["", "an exam"]
    assert store.verify() == ()


def test_a_bank_of_the_past_knows_the_figures_and_policies_of_then(store):
    put(store, "law")
    store.promotions.record("law", {"lost": Figure(0.1)})
    store.promotions.protect("stable", POLICY)
    moment, _ = Journal(store.bank).head()
    store.promotions.record("law", {"lost": Figure(0.2)})
    store.promotions.unprotect("stable")
    past = Evaluations(store.bank.at(moment))
    assert past.of("law") == {"lost": Figure(0.1)} and past.policies() == {"stable": POLICY}
    assert store.promotions.policies() == {}


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({}, "no figure is given"),
        ({"a": Figure(math.nan)}, "has value nan, and only finite numbers are kept; measure it again"),
        ({"a": Figure(math.inf)}, "has value inf"),
        ({"a": Figure(0.0, -math.inf, 1.0)}, "has low -inf"),
        ({"a": Figure(0.0), "b": Figure(0.0, 1.0, 0.0)}, "b of 'law' has an interval from 1.0 to 0.0"),
        ({"a\0": Figure(0.0)}, "visible text"),
        ({" ": Figure(0.0)}, "visible text"),
    ],
)
def test_what_is_no_figure_is_refused_whole(store, scores, words):
    put(store, "law")
    with pytest.raises(ConfigError, match=words):
        store.promotions.record("law", scores)
    assert store.promotions.of("law") == {}


def test_a_protected_tag_takes_only_versions_that_fit_and_the_refusal_tells_every_figure(store):
    chain(store, 1.0)
    store.promotions.protect("stable", POLICY)
    put(store, "law", 2.0)
    with pytest.raises(PolicyRefused, match=r"lost, at most 0\.1: not measured; record it"):
        store.tag("law@2", "stable")
    store.promotions.record("law@2", {"lost": figure(0.095), "gained": figure(0.96)})
    with pytest.raises(PolicyRefused) as caught:
        store.tag("law@2", "stable")
    assert str(caught.value) == (
        "version 2 of shared/law may not take the protected tag 'stable': "
        "lost, at most 0.1: 0.095 [0.085, 0.105] (n 40, 8 groups); broken by the high end of its interval; "
        "gained, at least -0.05 from the current version: 0.96 [0.95, 0.97] (n 40, 8 groups) after "
        "1 [0.99, 1.01] (n 40, 8 groups), a change of -0.04 [-0.0541421, -0.0258579] (n 40, 8 groups); met; "
        "tag a version that fits, or scale this one down"
    )
    refused = Journal(store.bank).entries(action=Action.REFUSED)
    assert len(refused) == 2 and refused[0].detail["reason"] == str(caught.value)
    assert store.tags("law") == {"stable": 1}, "a refused tag stays where it was"
    store.promotions.record("law@2", {"lost": figure(0.08)})
    store.tag("law@2", "stable")
    store.tag("law@1", "other")
    assert store.tags("law") == {"stable": 2, "other": 1}
    assert store.verify() == ()


def test_a_relative_bound_compares_with_the_version_that_holds_the_tag_or_held_it_last(store):
    store.promotions.protect("stable", POLICY)
    chain(store, 1.0)
    put(store, "law", 2.0)
    store.promotions.record("law@2", good(gained=0.9))
    with pytest.raises(PolicyRefused, match=r"a change of -0\.1 "):
        store.tag("law@2", "stable")
    store.bank.untag("law", "stable")
    with pytest.raises(PolicyRefused, match=r"a change of -0\.1 "):
        store.tag("law@2", "stable")
    store.tag("law@1", "stable")
    assert store.tags("law") == {"stable": 1}


def test_a_relative_bound_asks_nothing_of_a_former_life(store):
    store.promotions.protect("stable", POLICY)
    chain(store, 1.0)
    Life(store.bank).archive("law")
    Life(store.bank).expire("law")
    put(store, "law", 2.0)
    store.promotions.record("law@2", good(gained=0.1))
    store.tag("law@2", "stable")
    assert store.tags("law") == {"stable": 2}


def test_a_policy_binds_every_block_until_it_is_taken_away(store):
    put(store, "art")
    store.promotions.protect("stable", POLICY)
    with pytest.raises(PolicyRefused):
        store.tag("art", "stable")
    store.promotions.protect("stable", TagPolicy())
    store.tag("art", "stable")
    store.promotions.unprotect("stable")
    store.promotions.unprotect("stable")
    actions = [entry.action for entry in Journal(store.bank).entries()]
    assert (actions.count("protect"), actions.count("unprotect")) == (2, 1)
    store.promotions.protect("stable", POLICY)
    store.promotions.protect("stable", POLICY)
    assert len(Journal(store.bank).entries(action=Action.PROTECT)) == 3, "an equal policy adds nothing"


def test_latest_cannot_be_protected(store):
    with pytest.raises(ConfigError, match="a tag is a word other than 'latest'"):
        store.promotions.protect("latest", POLICY)


def test_an_evaluation_below_the_bound_rolls_the_tag_back(store):
    store.promotions.protect("stable", POLICY)
    chain(store, 1.0, 2.0, 3.0)
    (fall,) = store.promotions.record("law@3", BAD)
    assert fall == Fall("stable", 3, 2, fall.reason)
    assert fall.reason == (
        "an evaluation of version 3 breaks what 'stable' demands: "
        "lost, at most 0.1: 0.3 [0.29, 0.31] (n 40, 8 groups); broken by the high end of its interval"
    )
    assert store.tags("law") == {"stable": 2}
    (entry, *_) = entries(store, Action.TAG)
    expected = {"tag": "stable", "number": 2, "reason": fall.reason, "trigger": "evaluation"}
    assert entry.detail == expected and entry.principal == "root"
    assert store.find("law").number == 3, "no version is taken away"
    assert store.verify() == ()


def test_the_rollback_passes_over_versions_that_do_not_fit_any_more(store):
    store.promotions.protect("stable", POLICY)
    chain(store, 1.0, 2.0, 3.0)
    assert store.promotions.record("law@2", BAD) == (), "the tag does not point there"
    (fall,) = store.promotions.record("law@3", BAD)
    assert (fall.number, fall.now, store.tags("law")) == (3, 1, {"stable": 1})
    (fall,) = store.promotions.record("law@1", BAD)
    assert (fall.number, fall.now, store.tags("law")) == (1, None, {})
    (entry,) = entries(store, Action.UNTAG)
    assert entry.detail == {"tag": "stable", "reason": fall.reason, "trigger": "evaluation"}
    assert store.verify() == ()


@pytest.mark.parametrize(("order", "left"), [((3,), 3), ((3, 1), 1), ((2, 1, 3), 3)])
def test_the_rollback_goes_to_earlier_versions_that_the_tag_has_been_at(store, order, left):
    for number in (1, 2, 3):
        put(store, "law", float(number))
        store.promotions.record(f"law@{number}", good())
        store.tag(f"law@{number}", "other")
    for number in order:
        store.tag(f"law@{number}", "stable")
    store.promotions.protect("stable", POLICY)
    (fall,) = store.promotions.record(f"law@{left}", BAD)
    assert fall.now == (2 if 2 in order else None), "the newest of them, by number"


def test_the_rollback_asks_absolute_bounds_of_what_it_goes_back_to_and_all_of_them(store):
    chain(store, 1.0, 2.0)
    store.promotions.protect("stable", TagPolicy(bounds=(LOST, Bound(metric="kl", at_most=1.0))))
    (fall,) = store.promotions.record("law@2", BAD)
    assert fall.now is None, "version 1 has no figure for kl"


def test_what_an_evaluation_did_not_measure_moves_no_tag(store):
    chain(store, 1.0, 2.0)
    store.promotions.record("law@2", BAD)
    store.promotions.protect("stable", POLICY)
    assert store.promotions.record("law@2", {"gained": figure(-9.0)}) == (), "relative, and lost was recorded before"
    assert store.tags("law") == {"stable": 2}
    assert [fall.now for fall in store.promotions.record("law@2", BAD)] == [1]


def test_every_protected_tag_that_points_there_falls_by_its_own_policy(store):
    store.promotions.protect("stable", POLICY)
    store.promotions.protect("loose", TagPolicy(bounds=(replace(LOST, at_most=1.0),)))
    chain(store, 1.0, 2.0)
    for tag in ("loose", "free"):
        store.tag("law@2", tag)
    store.promotions.record("law@2", BAD)
    assert store.tags("law") == {"stable": 1, "loose": 2, "free": 2}


def test_figures_are_of_bytes_so_a_rolled_back_version_has_those_of_the_one_it_restores(store):
    store.promotions.protect("stable", POLICY)
    chain(store, 1.0, 2.0)
    assert store.rollback("law", 1).number == 3, "no tag moves, so no policy is asked"
    assert store.promotions.of("law@3") == good()
    store.tag("law@3", "stable")
    (fall,) = store.promotions.record("law@1", BAD)
    assert (fall.number, fall.now) == (3, 2)


def test_a_frozen_block_keeps_its_tag_and_the_journal_tells_that_it_should_not(store):
    store.promotions.protect("stable", POLICY)
    chain(store, 1.0, 2.0)
    Life(store.bank).freeze("law")
    (fall,) = store.promotions.record("law@2", BAD)
    assert (fall.number, fall.now) == (2, 2) and "frozen and keeps the tag" in fall.reason
    assert store.tags("law") == {"stable": 2} and store.promotions.of("law@2")["lost"] == BAD["lost"]
    (entry,) = entries(store, Action.REFUSED)
    assert entry.detail == {"tag": "stable", "number": 2, "reason": fall.reason, "trigger": "evaluation"}
    Life(store.bank).thaw("law")
    assert [fall.now for fall in store.promotions.record("law@2", BAD)] == [1]
    assert store.verify() == ()


def test_a_block_that_began_again_after_its_expiry_is_not_rolled_back_into_its_former_life(store):
    store.promotions.protect("stable", POLICY)
    chain(store, 1.0)
    life = Life(store.bank)
    life.archive("law")
    life.expire("law")
    with pytest.raises(UnknownBlock):
        store.promotions.record("law", BAD)
    chain(store, 2.0)
    (fall,) = store.promotions.record("law@2", BAD)
    assert fall.now is None and store.tags("law") == {}


def test_recording_asks_write_and_protecting_asks_to_administer(store):
    put(store, "law")
    members = Members(store.bank)
    members.enrol("root", role=Role.OWNER)
    for name, role in (("eve", Role.EDITOR), ("rae", Role.READER), ("run", Role.RUNNER)):
        members.enrol(name, role=role, scope="shared")
    editor = as_principal(store, "eve").promotions
    editor.record("law", good())
    for name in ("rae", "run"):
        with pytest.raises(AccessDenied, match=f"'{name}' may not write shared/law"):
            as_principal(store, name).promotions.record("law", BAD)
        assert as_principal(store, name).promotions.of("law") == good()
    for refused in (lambda: editor.protect("stable", POLICY), lambda: editor.unprotect("stable")):
        with pytest.raises(AccessDenied, match="'eve' may not administer the bank"):
            refused()
    assert len(Journal(store.bank).entries(action=Action.DENIED)) == 4
    assert store.promotions.policies() == {}


def test_a_revoked_principal_neither_records_nor_brings_a_rollback(store):
    members = Members(store.bank)
    members.enrol("root", role=Role.OWNER)
    members.enrol("eve", role=Role.EDITOR, scope="shared")
    store.promotions.protect("stable", POLICY)
    chain(store, 1.0, 2.0)
    members.revoke("eve")
    with pytest.raises(AccessDenied, match="revoked"):
        as_principal(store, "eve").promotions.record("law@2", BAD)
    assert store.tags("law") == {"stable": 2} and store.promotions.of("law@2") == good()


def test_an_evaluation_and_its_rollback_are_one_transaction(store):
    store.promotions.protect("stable", POLICY)
    chain(store, 1.0, 2.0)

    def break_off() -> None:
        with store.bank.transaction():
            store.promotions.record("law@2", BAD)
            assert store.tags("law") == {"stable": 1}
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert store.tags("law") == {"stable": 2} and store.promotions.of("law@2") == good()
    assert store.verify() == ()


steps = st.lists(
    st.tuples(st.sampled_from(["put", "record", "tag"]), st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=24
)


@given(steps)
@settings(max_examples=25, deadline=None)
def test_any_history_moves_the_tag_as_a_dictionary_would(made):
    """Versions count up, values 0 and 1 fit, 2 and 3 do not."""
    shm = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=shm) as folder:
        store = GovernedStore(Path(folder) / "bank", principal="root", clock=Hands())
        store.promotions.protect("stable", TagPolicy(bounds=(Bound(metric="a", at_most=1.0, judged="value"),)))
        put(store, "law", 0.0)
        count, values, tag, been = 1, {}, None, set()
        for verb, pick, value in made:
            number = min(pick, count)
            fits = {n for n, score in values.items() if score <= 1}
            if verb == "put":
                count += 1
                assert put(store, "law", float(count)).number == count
            elif verb == "record":
                falls = store.promotions.record(f"law@{number}", {"a": Figure(float(value))})
                values[number] = value
                if tag == number and value > 1:
                    tag = max((n for n in been & fits if n < number), default=None)
                    assert [(fall.number, fall.now) for fall in falls] == [(number, tag)]
                else:
                    assert falls == ()
            elif number in fits or number == tag:
                store.tag(f"law@{number}", "stable")
                tag = number
                been.add(number)
            else:
                with pytest.raises(PolicyRefused):
                    store.tag(f"law@{number}", "stable")
            assert store.tags("law").get("stable") == tag
        assert store.verify() == ()
