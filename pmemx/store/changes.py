"""Changes to a ledger: commits, tags, moves through life. Each asks permission, asks the state, and adds an entry."""

import json
import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from pmemx.core.access import Permission
from pmemx.core.card_json import card_values
from pmemx.core.errors import Diverged
from pmemx.core.event import Action
from pmemx.core.lifecycle import State, Trigger, check_move, check_open
from pmemx.store import catalogue, schema
from pmemx.store.catalogue import Found
from pmemx.store.ledger import Transaction
from pmemx.store.manifest import Manifest
from pmemx.store.projection import block_id
from pmemx.store.protection import require_fit
from pmemx.store.references import LATEST, Name, check_name, check_namespace, check_tag
from pmemx.store.schema import NEVER


def commit(
    now: Transaction,
    name: Name,
    manifest: Manifest,
    *,
    message: str = "",
    after: int | None = None,
    restores: int | None = None,
    digest: str = "",
    expires: int = NEVER,
) -> Found:
    """Add a version, unless the latest has its digest already. Its objects must be in the store.

    digest: of the manifest as it is stored, where an older pmemx wrote it; empty for one that this pmemx writes. after:
    the number that the latest version must have, 0 for a new name. expires: as for adopt. Raises Diverged when another
    has, AccessDenied, IllegalTransition for a frozen block, ConfigError for a name that cannot be shown.
    """
    check_namespace(name.namespace)
    check_name(name.name)
    now.require(Permission.WRITE, name)
    digest = digest or manifest.digest
    block = block_id(now.connection, name.namespace, name.name)
    latest = catalogue.history_end(now, block) if block is not None else None
    number = latest.version.number if latest else 0
    if after is not None and after != number:
        raise Diverged(
            f"{name} has versions up to {number}, not {after}: another writer was first; read it again and repeat the change"
        )
    state = catalogue.state_of(now, block) if block is not None else State.GENERATED
    # Of an expired block only a tombstone is left: the same bytes begin its new life as any others do.
    if latest and latest.version.digest == digest and state is not State.EXPIRED:
        return latest
    return _add(now, name, state, number + 1, manifest, digest, message=message, restores=restores, expires=expires)


def adopt(now: Transaction, name: Name, copied: Found, manifest: Manifest, *, message: str, expires: int) -> Found:
    """Add the version of another bank, or of another block, under its own number and digest.

    manifest: that of the digest, which is not made again, since an older pmemx may have written it. expires: when the
    original expires (microseconds since 1970): a copy does not outlive it. Raises as commit does.
    """
    check_namespace(name.namespace)
    check_name(name.name)
    now.require(Permission.WRITE, name)
    block = block_id(now.connection, name.namespace, name.name)
    number = catalogue.history_end(now, block).version.number if block is not None else 0
    version = copied.version
    if version.number != number + 1:
        raise Diverged(f"{name} has versions up to {number}, so that {version.number} cannot follow; copy it again")
    state = catalogue.state_of(now, block) if block is not None else State.GENERATED
    return _add(
        now, name, state, version.number, manifest, version.digest,
        message=message, restores=version.restores, expires=expires,
    )  # fmt: skip


def _add(
    now: Transaction,
    name: Name,
    state: State,
    number: int,
    manifest: Manifest,
    digest: str,
    *,
    message: str,
    restores: int | None,
    expires: int = NEVER,
) -> Found:
    if state is State.FROZEN:
        check_open(str(name), state, "a new version")
    detail: dict[str, Any] = {
        "uid": uuid.uuid4().hex if number == 1 else "",
        "number": number,
        "digest": digest,
        "weights": manifest.weights,
        "size": manifest.size,
        "rank": manifest.rank,
        "sites": len(manifest.sites),
        "restores": restores,
        "message": message,
        "card": card_values(manifest.card),
    }
    if expires != NEVER:
        detail["expires"] = expires
    now.append(Action.COMMIT, name, detail)
    if state in (State.MERGED, State.ARCHIVED, State.EXPIRED):
        move(now, name, State.GENERATED, Trigger.COMMIT)
    made = block_id(now.connection, name.namespace, name.name)
    assert made is not None
    return catalogue.history_end(now, made)


def tag(now: Transaction, found: Found, tag: str, *, reason: str = "") -> None:
    """Point a tag of the version's block at it; where it does so already, nothing is added.

    Raises ConfigError, AccessDenied, IllegalTransition, PolicyRefused.
    """
    check_tag(tag)
    _open_for(now, found, "another tag")
    if catalogue.number_behind(now, found.block, tag) != found.version.number:
        require_fit(now, found, tag)
        now.append(Action.TAG, found.full, {"tag": tag, "number": found.version.number, "reason": reason})


def untag(now: Transaction, found: Found, tag: str, *, reason: str = "") -> None:
    """Take a tag away; the version stays. A tag that is not there is no error."""
    check_tag(tag)
    _open_for(now, found, "the loss of a tag")
    if catalogue.number_behind(now, found.block, tag):
        now.append(Action.UNTAG, found.full, {"tag": tag, "reason": reason})


def move(now: Transaction, name: Name, to: State, trigger: Trigger, detail: Mapping[str, Any] | None = None) -> None:
    """Move a block through its life; one that expires loses its tags. Who may, is the caller's to ask.

    Raises IllegalTransition.
    """
    block = block_id(now.connection, name.namespace, name.name)
    assert block is not None
    before = catalogue.state_of(now, block)
    check_move(str(name), before, to, trigger)
    if to is State.EXPIRED:
        for tag in sorted(catalogue.pointers(now, block).keys() - {LATEST}):
            now.append(Action.UNTAG, name, {"tag": tag, "reason": "the block expires"})
    now.append(Action.MOVE, name, {"from": before.value, "to": to.value, "trigger": trigger.value, **(detail or {})})


def roll_back(now: Transaction, found: Found, manifest: Manifest, *, message: str = "") -> Found:
    """Add a latest version with the bytes of an earlier one, unless the latest has them.

    What was copied from another bank expires when its original does, however often it is restored.
    """
    version = found.version
    expires = _bound(now, found)
    return commit(
        now, found.full, manifest, message=message, restores=version.number, digest=version.digest, expires=expires
    )


def _bound(now: Transaction, found: Found) -> int:
    """When the original of a version that was copied expires, far away for any other."""
    rows = schema.journal
    detail = now.connection.execute(select(rows.c.detail).where(rows.c.seq == found.seq)).scalar_one()
    return json.loads(detail).get("expires", NEVER)


def _open_for(now: Transaction, found: Found, change: str) -> None:
    now.require(Permission.WRITE, found.full, sensitivity=found.version.card.sensitivity)
    check_open(str(found.full), catalogue.state_of(now, found.block), change)
