"""Every pair of states with every trigger, against a table that was written by hand."""

import itertools

import pytest

from pmemx.core.errors import IllegalTransition, PmemxError
from pmemx.core.lifecycle import SELECTABLE, State, Trigger, check_move, check_open

# trigger: before > after, ... with the first letter of a state: g(enerated) a(ctivated) m(erged) r (archived: at rest)
# e(xpired) f(rozen).
LEGAL = {
    "commit": "m>g r>g e>g",
    "use": "g>a",
    "merge": "g>m a>m",
    "archive": "g>r a>r m>r",
    "restore": "m>g m>a r>g r>a",
    "freeze": "g>f a>f",
    "thaw": "f>g f>a f>m f>r",
    "expire": "r>e",
    "ttl": "g>r a>r m>r",
    "disuse": "g>r a>r m>r",
}
LETTERS = dict(zip("gamref", State, strict=True))
CASES = list(itertools.product(State, State, Trigger))


def legal(before: State, after: State, trigger: Trigger) -> bool:
    pairs = [move.split(">") for move in LEGAL[trigger.value].split()]
    return [before, after] in [[LETTERS[letter] for letter in pair] for pair in pairs]


def test_the_letters_of_the_table_are_the_states() -> None:
    assert {letter: state.value for letter, state in LETTERS.items()} == {
        "g": "generated", "a": "activated", "m": "merged", "r": "archived", "e": "expired", "f": "frozen",
    }  # fmt: skip
    assert LEGAL.keys() == {trigger.value for trigger in Trigger}
    assert sum(legal(*case) for case in CASES) == 26


@pytest.mark.parametrize(("before", "after", "trigger"), CASES)
def test_a_move_is_legal_where_the_table_says_so_and_nowhere_else(
    before: State, after: State, trigger: Trigger
) -> None:
    if legal(before, after, trigger):
        check_move("shared/law", before, after, trigger)
        return
    with pytest.raises(IllegalTransition) as caught:
        check_move("shared/law", before, after, trigger)
    message = str(caught.value)
    assert all(word in message for word in ("shared/law", before.value, after.value, trigger.value))
    assert ("thaw it first" in message) == (before is State.FROZEN)


def test_a_refused_move_says_what_would_be_legal() -> None:
    with pytest.raises(
        IllegalTransition, match="is expired; restore leads from merged or archived to generated or activated"
    ):
        check_move("law", State.EXPIRED, State.ACTIVATED, Trigger.RESTORE)


def test_nothing_leads_out_of_frozen_but_a_thaw_and_out_of_expired_but_a_commit() -> None:
    ways = {(before, trigger) for before, after, trigger in CASES if legal(before, after, trigger)}
    assert {trigger for before, trigger in ways if before is State.FROZEN} == {Trigger.THAW}
    assert {trigger for before, trigger in ways if before is State.EXPIRED} == {Trigger.COMMIT}


@pytest.mark.parametrize("state", State)
def test_versions_and_tags_change_in_every_state_but_frozen_and_expired(state: State) -> None:
    if state in (State.FROZEN, State.EXPIRED):
        with pytest.raises(IllegalTransition, match=f"law is {state.value} and refuses another tag"):
            check_open("law", state, "another tag")
    else:
        check_open("law", state, "another tag")


def test_a_router_may_choose_what_is_generated_activated_or_frozen() -> None:
    assert {state.value for state in SELECTABLE} == {"generated", "activated", "frozen"}
    assert issubclass(IllegalTransition, PmemxError)
