"""A bank against a dictionary: whatever is done in whatever order, both say the same, now and of every moment before."""

import copy
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pmemx.core.card import BlockCard
from pmemx.core.errors import Diverged, IllegalTransition, UnknownBlock
from pmemx.core.lifecycle import SELECTABLE, State, Trigger, check_move
from pmemx.store import catalogue, changes
from pmemx.store.bank import Bank
from pmemx.store.manifest import Manifest
from pmemx.store.references import split_namespace
from pmemx.store.verification import findings

# Names that collide in their case, as a reference to another, as almost a digest; and one in a namespace.
NAMES = ("a", "A", "a@1", "abcdef01234", "team:x/a")
TAGS = ("best", "prod")
NAME, TAG, CONTENT, NUMBER = (st.sampled_from(NAMES), st.sampled_from(TAGS), st.integers(0, 2), st.integers(1, 3))


@dataclass
class Block:
    """What a bank must know of a block: contents of versions, what each restores, tags, its state; gone: versions that expired."""

    contents: list[int] = field(default_factory=list)
    restores: list[int | None] = field(default_factory=list)
    tags: dict[str, int] = field(default_factory=dict)
    state: State = State.GENERATED
    gone: int = 0

    def move(self, to: State) -> None:
        """Into a state; one that expires leaves the history of its versions and nothing else."""
        self.state = to
        if to is State.EXPIRED:
            self.gone, self.tags = len(self.contents), {}


Model = dict[str, Block]


class BankAndDictionary(RuleBasedStateMachine):
    """Every rule does the same to both; a rule that the dictionary forbids must be refused by the bank."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.time = datetime(2026, 11, 23, tzinfo=UTC)
        self.bank = Bank(Path(self.folder.name) / "bank", principal="ann", clock=lambda: self.time)
        self.model: Model = {}
        self.past: dict[int, Model] = {0: {}}
        self.touched = NAMES[0]

    def teardown(self) -> None:
        assert list(findings(self.bank)) == []
        agree(self.bank, self.model, NAMES)
        for moment in sorted(self.past)[::4]:
            agree(self.bank.at(moment), self.past[moment], NAMES)
        self.folder.cleanup()

    # ---------------------------------------------------------------------------------------------------------- changes

    @initialize(count=st.integers(0, 3))
    def begin(self, count: int) -> None:
        """Not from nothing, where most rules have nothing to change."""
        for name in NAMES[:count]:
            for content in (0, 1):
                self.put(name, content, None, 1)
            self.point(name, 1, "best")

    @rule(name=NAME, content=CONTENT, after=st.none() | st.integers(0, 3), seconds=st.integers(-5, 5))
    def put(self, name: str, content: int, after: int | None, seconds: int) -> None:
        self.time += timedelta(seconds=seconds)
        held = self.model.get(name, Block())
        full, count = split_namespace(name), len(held.contents)
        weights = bytes([content])
        manifest = Manifest(card_of(name, content), (), self.bank.objects.put(weights), 1)

        def commit() -> int:
            return self.bank.commit(manifest, weights, name=full, after=after).number

        changes_something = held.contents[-1:] != [content] or held.state is State.EXPIRED
        if after not in (None, count):
            refused(Diverged, commit)
        elif changes_something and held.state is State.FROZEN:
            refused(IllegalTransition, commit)
        else:
            if changes_something:
                self.add(name, held, content, None)
            assert commit() == len(held.contents)
        self.remember(name)

    @rule(name=NAME, number=NUMBER)
    def rollback(self, name: str, number: int) -> None:
        held = self.model.get(name, Block())

        def roll_back() -> int:
            return self.bank.rollback(name, number).number

        if not held.gone < number <= len(held.contents):
            refused(UnknownBlock, roll_back)
        elif held.contents[-1] == held.contents[number - 1]:
            assert roll_back() == len(held.contents)
        elif held.state is State.FROZEN:
            refused(IllegalTransition, roll_back)
        else:
            self.add(name, held, held.contents[number - 1], number)
            assert roll_back() == len(held.contents)
        self.remember(name)

    @rule(name=NAME, number=NUMBER, tag=TAG)
    def point(self, name: str, number: int, tag: str) -> None:
        held, reference = self.model.get(name, Block()), f"{name}@{number}"
        if reference in self.model:  # a name first
            held, number = self.model[reference], len(self.model[reference].contents)

        def tag_it() -> int:
            return self.bank.tag(reference, tag).number

        if not held.gone < number <= len(held.contents):
            refused(UnknownBlock, tag_it)
        elif held.state is State.FROZEN:
            refused(IllegalTransition, tag_it)
        else:
            held.tags[tag] = number
            assert tag_it() == number
        self.remember(name)

    @rule(name=NAME, tag=TAG)
    def untag(self, name: str, tag: str) -> None:
        meant = name if name in self.model else name.removesuffix("@1")  # a reference to a version means its block
        held = self.model.get(meant, Block())
        of_an_earlier_life = meant != name and held.gone > 0
        if not held.contents or held.state is State.EXPIRED or of_an_earlier_life:
            refused(UnknownBlock, lambda: self.bank.untag(name, tag))
        elif held.state is State.FROZEN:
            refused(IllegalTransition, lambda: self.bank.untag(name, tag))
        else:
            held.tags.pop(tag, None)
            self.bank.untag(name, tag)
        self.remember(name)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), to=st.sampled_from(State), trigger=st.sampled_from(Trigger))
    def move(self, data: st.DataObject, to: State, trigger: Trigger) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        held = self.model[name]
        if held.state is State.EXPIRED and trigger is Trigger.COMMIT:
            return  # a move that only a new version brings

        def go() -> None:
            with self.bank.transaction() as now:
                changes.move(now, split_namespace(name), to, trigger)

        try:
            check_move(name, held.state, to, trigger)  # whose own table is in test_lifecycle
        except IllegalTransition:
            refused(IllegalTransition, go)
        else:
            go()
            held.move(to)
        self.remember(name)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), way=st.sampled_from(["archive", "freeze", "thaw", "expire"]), again=st.booleans())
    def move_legally(self, data: st.DataObject, way: str, again: bool) -> None:
        """Where a random move would seldom lead."""
        name = data.draw(st.sampled_from(sorted(self.model)))
        moves = {
            "archive": ((State.GENERATED, State.ACTIVATED, State.MERGED), State.ARCHIVED, Trigger.ARCHIVE),
            "freeze": ((State.GENERATED, State.ACTIVATED), State.FROZEN, Trigger.FREEZE),
            "thaw": ((State.FROZEN,), State.GENERATED, Trigger.THAW),
            "expire": ((State.ARCHIVED,), State.EXPIRED, Trigger.EXPIRE),
        }
        for step in ("archive", "expire") if way == "expire" else (way,):
            sources, to, trigger = moves[step]
            if self.model[name].state in sources:
                with self.bank.transaction() as now:
                    changes.move(now, split_namespace(name), to, trigger)
                self.model[name].move(to)
                self.remember(name)
        if again:  # a tombstone's own bytes begin a new life, those of a block at rest do not
            self.put(name, self.model[name].contents[-1], None, 1)

    @rule(name=NAME, tag=TAG)
    def fail_in_the_middle(self, name: str, tag: str) -> None:
        """A transaction that is abandoned after a change leaves no trace."""

        def abandon() -> None:
            with self.bank.transaction():
                self.bank.commit(Manifest(card_of(name, 9), (), self.bank.objects.put(b"9"), 1), b"9", name=full)
                self.bank.tag(name, tag)
                raise Abandoned

        full = split_namespace(name)
        held = self.model.get(name)
        refused(IllegalTransition if held and held.state is State.FROZEN else Abandoned, abandon)

    # ------------------------------------------------------------------------------------------------------- invariants

    @invariant()
    def bank_and_dictionary_agree(self) -> None:
        agree(self.bank, self.model, [self.touched])

    def add(self, name: str, held: Block, content: int, restores: int | None) -> None:
        held.contents.append(content)
        held.restores.append(restores)
        if held.state in (State.MERGED, State.ARCHIVED, State.EXPIRED):
            held.state = State.GENERATED
        self.model[name] = held

    def remember(self, name: str) -> None:
        self.touched = name
        with self.bank.ledger.reading() as now:
            self.past[now.head[0]] = copy.deepcopy(self.model)


class Abandoned(Exception):
    """Raised by these tests alone."""


def card_of(name: str, content: int) -> BlockCard:
    return BlockCard(split_namespace(name).name, f"domain {content} of {name}", "b" * 64)


def refused(error: type[Exception], change: Callable[[], object]) -> None:
    with pytest.raises(error):
        change()


def agree(bank: Bank, model: Model, names: Iterable[str]) -> None:
    # In one transaction, which is quicker, and in which a bank of the past answers as such too.
    with Bank(bank.path, principal="ann", clock=bank.clock).transaction():
        selectable = [name for name, held in model.items() if held.state in SELECTABLE]
        assert bank.names() == tuple(sorted(selectable))
        with bank.ledger.reading() as now:
            lines = {line.full_name: line for line in catalogue.listing(now)}
        assert lines.keys() == model.keys()
        for name in names:
            held = model.get(name, Block())
            if not held.contents:
                refused(UnknownBlock, lambda name=name: bank.history(name))
                continue
            known = bank.history(name)
            assert [version.card.domain for version in known] == [
                f"domain {content} of {name}" for content in held.contents
            ]
            assert [version.number for version in known] == list(range(1, len(known) + 1))
            assert [version.restores for version in known] == held.restores
            assert bank.tags(name) == held.tags
            latest = len(known)
            assert (lines[name].state, lines[name].number) == (held.state.value, latest)
            assert lines[name].tags == tuple(sorted(tag for tag, number in held.tags.items() if number == latest))
            same = [version for version in known if version.digest == known[-1].digest]
            means = {
                name: latest,
                f"shared/{name}" if "/" not in name else name: latest,
                f"{name}@latest": latest,
                f"{name}@{latest}": latest,
                known[-1].digest: same[-1].number,
                known[-1].digest[:12]: same[-1].number,
            } | {f"{name}@{tag}": number for tag, number in held.tags.items()}
            for reference, number in means.items():
                if reference in model and reference != name:
                    continue  # the name of another block, which is asked for in its turn
                if held.state is State.EXPIRED:
                    refused(UnknownBlock, lambda reference=reference: bank.find(reference))
                else:
                    assert bank.find(reference) == known[number - 1]
            refused(UnknownBlock, lambda name=name, latest=latest: bank.find(f"{name}@{latest + 5}"))
            for number in range(1, held.gone + 1):
                if f"{name}@{number}" not in model:
                    refused(UnknownBlock, lambda name=name, number=number: bank.find(f"{name}@{number}"))


def test_a_version_of_an_earlier_life_names_no_block_to_untag():
    state = BankAndDictionary()
    state.begin(count=1)
    for to, trigger in ((State.ARCHIVED, Trigger.ARCHIVE), (State.EXPIRED, Trigger.EXPIRE)):
        with state.bank.transaction() as now:
            changes.move(now, split_namespace("a"), to, trigger)
        state.model["a"].move(to)
    state.put("a", 1, None, 1)
    for name in ("a@1", "a"):
        state.untag(name, "best")
    state.teardown()


TestBankAndDictionary = BankAndDictionary.TestCase
TestBankAndDictionary.settings = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
