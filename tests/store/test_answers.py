"""Answers in the journal: what they say of versions, what they count, who may note and trace them, and all of it at once."""

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update

from pmemx.core.access import Role
from pmemx.core.canonical import canonical_json, digest
from pmemx.core.errors import AccessDenied, ConfigError, CorruptBlock, UnknownAnswer, UnknownBlock
from pmemx.core.event import Action
from pmemx.core.lifecycle import State, Trigger
from pmemx.core.provenance import Provenance, Share
from pmemx.store import catalogue, schema
from pmemx.store.answers import Answers, Part
from pmemx.store.bank import Bank
from pmemx.store.governed import GovernedStore
from pmemx.store.journal import Journal
from pmemx.store.life import Life
from pmemx.store.members import Members
from pmemx.store.references import Name
from pmemx.store.verification import findings
from tests.store.banks import Hands, opened, put
from tests.store.workers import commit


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
def store(tmp_path: Path, clock: Hands) -> GovernedStore:
    """Two versions of law, one of medicine, one of contracts in a namespace."""
    store = opened(tmp_path, clock)
    put(store, "law")
    put(store, "law", 2.0)
    put(store, "medicine")
    put(replace(store, namespace="team:legal"), "contracts")
    return store


@pytest.fixture
def answers(store: GovernedStore) -> Answers:
    return Answers(store.bank)


def said(number: int, *shares: Share) -> Provenance:
    """Provenance of an answer with a number of its own."""
    return Provenance("f" * 64, "gate", "{}", shares, digest([1, 2]), digest([number]))


def share(store: GovernedStore, reference: str, weight: float, block: str = "") -> Share:
    version = store.find(reference)
    return Share(block or version.name, version.digest, weight)


def usage(store: GovernedStore, name: str, namespace: str = "shared") -> dict[int, tuple[int, float]]:
    """Uses and their mean relevance, by version."""
    with store.bank.ledger.reading() as now:
        found = catalogue.usage(now, catalogue.block_of(now, Name(namespace, name)))
    return {number: (count, relevance) for number, (count, _, relevance) in found.items()}


def head(store: GovernedStore) -> int:
    return Journal(store.bank).head()[0]


def acting(store: GovernedStore, principal: str) -> Answers:
    return Answers(replace(store, principal=principal).bank)


def test_a_noted_answer_tells_versions_weights_states_time_and_principal(
    store: GovernedStore, answers: Answers, clock: Hands
) -> None:
    clock.turn(hours=1)
    one = said(1, share(store, "law@1", 0.25), share(store, "team:legal/contracts", 0.5))
    assert answers.note(one) == one.id
    traced = answers.trace(one.id)
    assert traced.provenance == one
    assert traced.parts == (
        Part("team:legal/contracts", 1, store.find("team:legal/contracts").digest, 0.5, State.ACTIVATED),
        Part("shared/law", 1, store.find("law@1").digest, 0.25, State.ACTIVATED),
    )
    assert (traced.time, traced.principal) == (clock.time, "root")
    Life(store.bank).freeze("law")
    assert {part.name: part.state for part in answers.trace(one.id).parts}["shared/law"] is State.FROZEN


def test_an_answer_counts_a_use_of_every_version_with_weight_and_activates_it(
    store: GovernedStore, answers: Answers
) -> None:
    life = Life(store.bank)
    assert life.state("law") is life.state("medicine") is State.GENERATED
    answers.note(said(1, share(store, "law@1", 0.75), share(store, "medicine", 0.005)))
    assert (usage(store, "law"), usage(store, "medicine")) == ({1: (1, 0.75)}, {})
    assert (life.state("law"), life.state("medicine")) == (State.ACTIVATED, State.GENERATED)
    answers.note(said(2, share(store, "law@1", 0.5), share(store, "law@2", 0.25, "new law")), relevance=0.5)
    assert usage(store, "law") == {1: (2, (0.75 + 0.25) / 2), 2: (1, 0.125)}
    moves = Journal(store.bank).entries("law", action=Action.MOVE)
    assert [entry.detail["trigger"] for entry in moves] == [Trigger.USE]


def test_what_is_negligible_is_a_setting_and_subtraction_is_use_too(store: GovernedStore) -> None:
    answers = Answers(store.bank, negligible=0.4)
    answers.note(said(1, share(store, "law", 0.3), share(store, "medicine", -0.5)))
    assert (usage(store, "law"), usage(store, "medicine")) == ({}, {1: (1, 0.5)})


def test_a_repeated_note_adds_nothing(store: GovernedStore, answers: Answers) -> None:
    one = said(1, share(store, "law", 1.0))
    answers.note(one)
    before = head(store)
    assert answers.note(one) == one.id
    assert head(store) == before and usage(store, "law") == {2: (1, 1.0)}


def test_an_answer_is_one_entry_with_its_whole_provenance_and_the_uses_follow(
    store: GovernedStore, answers: Answers
) -> None:
    one, before = said(1, share(store, "law", 0.5), share(store, "medicine", 0.5)), head(store)
    answers.note(one)
    entries = Journal(store.bank).entries()[::-1][before:]
    assert [entry.action for entry in entries] == ["answer", "use", "move", "use", "move"]
    assert entries[0].detail["id"] == one.id
    assert Provenance.from_json(canonical_json(entries[0].detail["provenance"])) == one
    assert list(findings(store.bank)) == []


def test_an_answer_of_the_base_alone_is_noted_too(store: GovernedStore, answers: Answers) -> None:
    one = said(1)
    assert answers.trace(answers.note(one)).parts == ()


def test_answers_of_a_version_come_newest_first(store: GovernedStore, answers: Answers) -> None:
    first, second = share(store, "law@1", 0.5), share(store, "law@2", 0.5)
    small = share(store, "medicine", 0.001)
    ids = [answers.note(said(number, (first, second)[number % 2], small)) for number in range(6)]
    assert answers.by_block("law@1") == (ids[4], ids[2], ids[0])
    assert answers.by_block("law") == (ids[5], ids[3], ids[1])
    assert answers.by_block(store.find("law@1").digest) == answers.by_block("law@1")
    assert answers.by_block("medicine", limit=4) == tuple(ids[:1:-1])
    assert answers.by_block("team:legal/contracts") == ()
    with pytest.raises(UnknownBlock, match="no block 'laws'; did you mean 'law'"):
        answers.by_block("laws")


def test_a_version_that_came_back_by_rollback_is_the_newest_of_its_digest(
    store: GovernedStore, answers: Answers
) -> None:
    store.rollback("law", 1)
    one = said(1, share(store, "law", 1.0))
    answers.note(one)
    assert [part.number for part in answers.trace(one.id).parts] == [3]


def test_one_digest_in_two_namespaces_is_the_block_that_was_served(store: GovernedStore, answers: Answers) -> None:
    twin = replace(store, namespace="team:legal")
    assert put(twin, "medicine").digest == store.find("shared/medicine").digest
    for number, (served, found) in enumerate(
        {
            "medicine": "shared/medicine",
            "team:legal/medicine": "team:legal/medicine",
            "other": "team:legal/medicine",
        }.items()
    ):
        one = said(number, share(store, "shared/medicine", 1.0, served))
        answers.note(one)
        assert [part.name for part in answers.trace(one.id).parts] == [found]


def test_a_name_without_a_namespace_is_one_of_the_banks_own(store: GovernedStore) -> None:
    legal = replace(store, namespace="team:legal")
    assert put(legal, "medicine").digest == store.find("shared/medicine").digest
    put(replace(store, namespace="user:zoe"), "medicine")
    answers = Answers(legal.bank)
    one = said(1, share(store, "shared/medicine", 1.0, "medicine"))
    answers.note(one)
    assert [part.name for part in answers.trace(one.id).parts] == ["team:legal/medicine"]


def test_a_version_that_is_served_under_two_names_is_one_part(store: GovernedStore, answers: Answers) -> None:
    one = said(1, share(store, "law", 0.25, "law"), share(store, "law", 0.5, "law again"))
    answers.note(one)
    assert [(part.number, part.weight) for part in answers.trace(one.id).parts] == [(2, 0.75)]
    assert usage(store, "law") == {2: (1, 0.75)}


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("law", "'law' was served as version 'law', which is no digest of a version in the bank"),
        ("0" * 12, "was served as version '000000000000', which is no digest"),
        ("0" * 64, "no version begins with digest 0000"),
    ],
)
def test_a_version_that_the_bank_does_not_hold_is_refused_and_nothing_is_kept(
    store: GovernedStore, answers: Answers, version: str, words: str
) -> None:
    before = head(store)
    with pytest.raises(UnknownBlock, match=words):
        answers.note(said(1, share(store, "medicine", 0.5), Share("law", version, 0.5)))
    assert head(store) == before and usage(store, "medicine") == {}


def test_an_expired_block_answers_no_more_but_its_answers_are_still_traced(
    store: GovernedStore, answers: Answers
) -> None:
    one, later = (said(number, share(store, "medicine", 1.0)) for number in (1, 2))
    answers.note(one)
    life = Life(store.bank)
    life.archive("medicine")
    life.expire("medicine")
    with pytest.raises(UnknownBlock, match="block shared/medicine expired"):
        answers.note(later)
    assert [(part.name, part.state) for part in answers.trace(one.id).parts] == [("shared/medicine", State.EXPIRED)]


def test_an_id_is_found_by_its_beginning_where_that_is_unique(store: GovernedStore, answers: Answers) -> None:
    notes = [said(number, share(store, "law", 1.0)) for number in range(20)]
    ids = [answers.note(one) for one in notes]
    shared = next(one[0] for one in ids if sum(other[0] == one[0] for other in ids) > 1)
    assert [answers.trace(one[:12]).provenance for one in ids] == notes
    with pytest.raises(UnknownAnswer, match=f"several answers begin with '{shared}'; give all 64 digits"):
        answers.trace(shared)
    for nobody in ("0" * 64, "", "%", "x", ids[0].upper() + "0"):
        with pytest.raises(UnknownAnswer, match="no answer that was noted begins with"):
            answers.trace(nobody)


def test_the_past_knows_only_the_answers_of_its_time(store: GovernedStore, answers: Answers) -> None:
    first, second = (said(number, share(store, "law", 1.0)) for number in (1, 2))
    answers.note(first)
    moment = head(store)
    answers.note(second)
    past = Answers(store.bank.at(moment))
    assert past.trace(first.id).provenance == first and past.by_block("law") == (first.id,)
    with pytest.raises(UnknownAnswer):
        past.trace(second.id)


def test_a_relevance_that_is_none_is_refused(store: GovernedStore, answers: Answers) -> None:
    for relevance in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=f"the relevance of an answer is {relevance}; give a number"):
            answers.note(said(1, share(store, "law", 1.0)), relevance=relevance)


def test_an_edited_provenance_is_noticed_by_its_id_and_by_verification(store: GovernedStore, answers: Answers) -> None:
    one = said(1, share(store, "law", 1.0))
    answers.note(one)
    rows = schema.answers
    with store.bank.transaction() as now:
        edited = {"id": one.id, "provenance": replace(one, gate="another").values(), "parts": []}
        now.connection.execute(update(rows).values(detail=json.dumps(edited)))
    with pytest.raises(CorruptBlock, match="was edited: its provenance has another id"):
        answers.trace(one.id)
    assert any("table answers" in fault for fault in findings(store.bank))


def test_noting_asks_execute_and_tracing_asks_read_on_every_block(store: GovernedStore) -> None:
    law, contracts = share(store, "law", 0.5), share(store, "team:legal/contracts", 0.5, "team:legal/contracts")
    members = Members(store.bank)
    members.enrol("root", role=Role.OWNER)
    members.enrol("reader", role=Role.READER)
    members.enrol("lawyer", role=Role.RUNNER, scope="team:legal")
    both, own = said(1, law, contracts), said(2, contracts)
    with pytest.raises(AccessDenied, match="'reader' may not execute shared/law"):
        acting(store, "reader").note(both)
    # Who may not read a version is not told that it exists.
    with pytest.raises(UnknownBlock, match="no version begins with digest"):
        acting(store, "lawyer").note(both)
    assert usage(store, "contracts", "team:legal") == {}
    Answers(store.bank).note(both)
    assert acting(store, "lawyer").note(own) == own.id
    assert acting(store, "lawyer").trace(own.id).principal == "lawyer"
    assert acting(store, "reader").trace(both.id).provenance == both
    for prefix in (both.id, both.id[:12]):
        with pytest.raises(UnknownAnswer, match=f"no answer that was noted begins with '{prefix}'"):
            acting(store, "lawyer").trace(prefix)
    with pytest.raises(AccessDenied, match="'lawyer' may not read shared/law"):
        acting(store, "lawyer").by_block("law")
    denied = Journal(store.bank).entries(action=Action.DENIED)
    assert [entry.principal for entry in denied] == ["lawyer", "reader"]


def test_an_answer_of_the_base_alone_asks_for_the_namespace(store: GovernedStore) -> None:
    members, alone = Members(store.bank), said(1)
    members.enrol("root", role=Role.OWNER)
    members.enrol("lawyer", role=Role.RUNNER, scope="team:legal")
    with pytest.raises(AccessDenied, match="'lawyer' may not execute shared"):
        acting(store, "lawyer").note(alone)
    with pytest.raises(AccessDenied, match="the bank does not know this principal"):
        acting(store, "stranger").note(alone)
    legal = Answers(replace(store, principal="lawyer", namespace="team:legal").bank)
    assert legal.trace(legal.note(alone)).provenance == alone
    with pytest.raises(UnknownAnswer, match="no answer that was noted"):
        acting(store, "lawyer").trace(alone.id)


def test_notes_of_four_threads_lose_no_count_on_any_ledger(new_bank: Callable[[], Bank]) -> None:
    bank = new_bank()
    for name in ("law", "medicine"):
        commit(bank, name, 1)
    law, medicine = (bank.find(name).digest for name in ("law", "medicine"))
    notes = [said(number, Share("law", law, 0.75), Share("medicine", medicine, 0.25)) for number in range(16)]

    def note(thread: int) -> list[str]:
        # Each thread notes its own eight, and so does one other.
        return [Answers(new_bank()).note(notes[(4 * thread + number) % 16]) for number in range(8)]

    with ThreadPoolExecutor(4) as pool:
        noted = {one for found in pool.map(note, range(4)) for one in found}
    assert noted == {one.id for one in notes} == set(Answers(bank).by_block("law"))
    with bank.ledger.reading() as now:
        for name, weight in (("law", 0.75), ("medicine", 0.25)):
            (use,) = catalogue.usage(now, catalogue.block_of(now, Name("shared", name))).values()
            assert (use[0], use[2]) == (16, weight)
    assert Life(bank).state("law") is State.ACTIVATED
    assert len(Journal(bank).entries("law", action=Action.MOVE)) == 1
    assert list(findings(bank)) == []


def test_answers_are_noted_and_traced_without_torch(store: GovernedStore) -> None:
    one = said(1, share(store, "law", 1.0))
    script = (
        "import sys\n"
        "from pmemx.core.provenance import Provenance\n"
        "from pmemx.store.answers import Answers\n"
        "from pmemx.store.bank import Bank\n"
        "answers = Answers(Bank(sys.argv[1]))\n"
        "answers.note(Provenance.from_json(sys.argv[2]))\n"
        "print(answers.by_block('law')[0], 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(store.path), one.to_json()], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [one.id, "False"]
    assert Answers(store.bank).trace(one.id).provenance == one
