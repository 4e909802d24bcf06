"""The states of a block's life and the moves between them that are legal (arXiv:2507.03724, section 5.4.3)."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from pmemx.core.errors import IllegalTransition


class State(StrEnum):
    """Where a block is in its life.

    generated: written, not used yet. activated: used. merged: taken up in another block. archived: out of selection,
    restorable. expired: only a tombstone is left. frozen: nothing about it may change.
    """

    GENERATED = "generated"
    ACTIVATED = "activated"
    MERGED = "merged"
    ARCHIVED = "archived"
    EXPIRED = "expired"
    FROZEN = "frozen"


SELECTABLE = frozenset({State.GENERATED, State.ACTIVATED, State.FROZEN})
"""States in which a router may choose a block."""


class Trigger(StrEnum):
    """What moved a block."""

    COMMIT = "commit"
    USE = "use"
    MERGE = "merge"
    ARCHIVE = "archive"
    RESTORE = "restore"
    FREEZE = "freeze"
    THAW = "thaw"
    EXPIRE = "expire"
    TTL = "ttl"
    DISUSE = "disuse"


_LIVE = frozenset({State.GENERATED, State.ACTIVATED})
_KEPT = _LIVE | {State.MERGED, State.ARCHIVED}

# From which states a trigger may move a block, and to which it moves it. A thaw goes back to where the freeze found it.
_MOVES: Mapping[Trigger, tuple[frozenset[State], frozenset[State]]] = MappingProxyType(
    {
        # A new version is not used yet, but a block in use stays in use; an expired name may begin a new life.
        Trigger.COMMIT: (
            frozenset({State.MERGED, State.ARCHIVED, State.EXPIRED}),
            frozenset({State.GENERATED}),
        ),
        Trigger.USE: (frozenset({State.GENERATED}), frozenset({State.ACTIVATED})),
        Trigger.MERGE: (_LIVE, frozenset({State.MERGED})),
        Trigger.ARCHIVE: (_LIVE | {State.MERGED}, frozenset({State.ARCHIVED})),
        Trigger.RESTORE: (frozenset({State.MERGED, State.ARCHIVED}), frozenset({State.GENERATED, State.ACTIVATED})),
        # Whatever is frozen may be chosen, so that only what may be chosen is frozen.
        Trigger.FREEZE: (_LIVE, frozenset({State.FROZEN})),
        Trigger.THAW: (frozenset({State.FROZEN}), _KEPT),
        Trigger.EXPIRE: (frozenset({State.ARCHIVED}), frozenset({State.EXPIRED})),
        Trigger.TTL: (_LIVE | {State.MERGED}, frozenset({State.ARCHIVED})),
        Trigger.DISUSE: (_LIVE | {State.MERGED}, frozenset({State.ARCHIVED})),
    }
)


def check_move(block: str, before: State, after: State, trigger: Trigger) -> None:
    """Raises IllegalTransition, saying what would be legal, unless the trigger may move a block so."""
    sources, targets = _MOVES[trigger]
    if before in sources and after in targets:
        return
    if before is State.FROZEN:
        raise IllegalTransition(
            f"block {block} is frozen, so {trigger.value} may not make it {after.value}; thaw it first"
        )
    raise IllegalTransition(
        f"block {block} is {before.value}; {trigger.value} leads from {_words(sources)} to {_words(targets)}, "
        f"not to {after.value}"
    )


def check_open(block: str, state: State, change: str) -> None:
    """Raises IllegalTransition when a state forbids that a block's versions or tags change."""
    if state is State.FROZEN:
        raise IllegalTransition(f"block {block} is frozen and refuses {change}; thaw it first")
    if state is State.EXPIRED:
        raise IllegalTransition(f"block {block} is expired and refuses {change}; only a tombstone is left of it")


def _words(states: frozenset[State]) -> str:
    return " or ".join(state.value for state in State if state in states)
