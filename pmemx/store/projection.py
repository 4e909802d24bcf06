"""What an entry of the journal does to the tables beside it.

The same function writes the tables when an entry is made and when the journal is replayed: that is how an edited table is
noticed, and how lost tables are made again.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Table, and_, bindparam, insert, select, update

from pmemx.core.canonical import canonical_json
from pmemx.core.event import Action, Event
from pmemx.core.lifecycle import State, Trigger
from pmemx.store import schema
from pmemx.store.references import LATEST

FACETS = ("domain", "base", "base_name", "semantic_type", "origin", "licence", "sensitivity", "made_by", "created")
"""Fields of the card that have a column of their own."""


# Made once: making a statement takes longer than running it.
_BLOCK = select(schema.blocks.c.id).where(
    schema.blocks.c.namespace == bindparam("namespace"), schema.blocks.c.name == bindparam("name")
)


def project(connection: Connection, event: Event) -> None:
    """Change the tables as the entry says. An action that only tells what happened changes none."""
    if step := _STEPS.get(event.action):
        step(connection, event)


def block_id(connection: Connection, namespace: str, name: str) -> int | None:
    """The key of a block's row, None where there is no such block."""
    return connection.execute(_BLOCK, {"namespace": namespace, "name": name}).scalar_one_or_none()


def _commit(connection: Connection, event: Event) -> None:
    detail, card = event.detail, event.detail["card"]
    block = block_id(connection, event.namespace, event.name)
    if block is None:
        block = event.seq
        row = {"id": block, "uid": detail["uid"], "namespace": event.namespace, "name": event.name}
        connection.execute(insert(schema.blocks), row)
        _begin_state(connection, block, event.seq, State.GENERATED, Trigger.COMMIT)
    number = detail["number"]
    kept = {key: detail[key] for key in ("number", "digest", "weights", "size", "rank", "sites", "restores", "message")}
    facets = {key: card[key] for key in FACETS}
    expires = schema.NEVER if card["ttl"] is None else min(schema.NEVER, event.at + round(min(card["ttl"], 1e13) * 1e6))
    expires = min(expires, detail.get("expires", schema.NEVER))
    row = {"block": block, "seq": event.seq, "expires": expires, "card": canonical_json(card)} | kept | facets
    connection.execute(insert(schema.versions), row)
    if card["parents"]:
        rows = [{"block": block, "number": number, "parent": parent} for parent in dict.fromkeys(card["parents"])]
        connection.execute(insert(schema.parents), rows)
    _point(connection, block, event.seq, LATEST, number)


def _tag(connection: Connection, event: Event) -> None:
    _point(connection, _block(connection, event), event.seq, event.detail["tag"], event.detail["number"])


def _untag(connection: Connection, event: Event) -> None:
    block, rows = _block(connection, event), schema.tags
    _end(connection, rows, event.seq, and_(rows.c.block == block, rows.c.tag == event.detail["tag"]))


def _point(connection: Connection, block: int, seq: int, tag: str, number: int) -> None:
    rows = schema.tags
    _end(connection, rows, seq, and_(rows.c.block == block, rows.c.tag == tag))
    row = {"block": block, "tag": tag, "since": seq, "until": schema.NEVER, "number": number}
    connection.execute(insert(rows), row)


def _move(connection: Connection, event: Event) -> None:
    block = _block(connection, event)
    _end(connection, schema.states, event.seq, schema.states.c.block == block)
    _begin_state(connection, block, event.seq, event.detail["to"], event.detail["trigger"])


def _begin_state(connection: Connection, block: int, seq: int, state: str, trigger: str) -> None:
    row = {"block": block, "since": seq, "until": schema.NEVER, "state": str(state), "trigger": str(trigger)}
    connection.execute(insert(schema.states), row)


def _use(connection: Connection, event: Event) -> None:
    rows, block = schema.uses, _block(connection, event)
    count, relevance = event.detail["count"], event.detail["relevance"]
    where = and_(rows.c.block == block, rows.c.number == event.detail["number"])
    added = {"count": rows.c.count + count, "relevance": rows.c.relevance + relevance, "last": event.at}
    if not connection.execute(update(rows).where(where).values(added)).rowcount:
        key = {"block": block, "number": event.detail["number"]}
        connection.execute(insert(rows), key | {"count": count, "relevance": relevance, "last": event.at})


def _evaluate(connection: Connection, event: Event) -> None:
    key = {"block": _block(connection, event), "number": event.detail["number"], "seq": event.seq}
    rows = [key | {"metric": metric} | figure for metric, figure in event.detail["scores"].items()]
    connection.execute(insert(schema.scores), rows)


def _enrol(connection: Connection, event: Event) -> None:
    rows, name = schema.principals, event.detail["principal"]
    row = {"token": event.detail["token"], "since": event.seq, "revoked": schema.NEVER}
    if not connection.execute(update(rows).where(rows.c.name == name).values(row)).rowcount:
        connection.execute(insert(rows), {"name": name} | row)


def _revoke(connection: Connection, event: Event) -> None:
    name = event.detail["principal"]
    connection.execute(update(schema.principals).where(schema.principals.c.name == name).values(revoked=event.seq))
    _end(connection, schema.grants, event.seq, schema.grants.c.principal == name)


def _grant(connection: Connection, event: Event) -> None:
    connection.execute(insert(schema.grants), _grant_key(event) | {"since": event.seq, "until": schema.NEVER})


def _withdraw(connection: Connection, event: Event) -> None:
    rows = schema.grants
    matches = [rows.c[column] == value for column, value in _grant_key(event).items()]
    _end(connection, rows, event.seq, and_(*matches))


def _grant_key(event: Event) -> dict[str, Any]:
    return {key: event.detail[key] for key in ("principal", "role", "scope")}


def _protect(connection: Connection, event: Event) -> None:
    _unprotect(connection, event)
    row = {"tag": event.detail["tag"], "since": event.seq, "until": schema.NEVER}
    connection.execute(insert(schema.policies), row | {"policy": canonical_json(event.detail["policy"])})


def _unprotect(connection: Connection, event: Event) -> None:
    _end(connection, schema.policies, event.seq, schema.policies.c.tag == event.detail["tag"])


def _snapshot(connection: Connection, event: Event) -> None:
    row = {
        "name": event.detail["snapshot"],
        "since": event.seq,
        "until": schema.NEVER,
        "moment": event.detail["moment"],
    }
    connection.execute(insert(schema.snapshots), row)


def _drop(connection: Connection, event: Event) -> None:
    _end(connection, schema.snapshots, event.seq, schema.snapshots.c.name == event.detail["snapshot"])


def _sign(connection: Connection, event: Event) -> None:
    kept = {key: event.detail[key] for key in ("digest", "key", "bundle")}
    connection.execute(insert(schema.signatures), kept | {"seq": event.seq})


def _answer(connection: Connection, event: Event) -> None:
    row = {"id": event.detail["id"], "seq": event.seq, "detail": canonical_json(event.detail)}
    connection.execute(insert(schema.answers), row)
    shares = [
        {
            "answer": row["id"],
            "block": block_id(connection, part["namespace"], part["name"]),
            "number": part["number"],
            "seq": event.seq,
            "weight": part["weight"],
        }
        for part in event.detail["parts"]
    ]
    if shares:
        connection.execute(insert(schema.shares), shares)


def _subscribe(connection: Connection, event: Event) -> None:
    _unsubscribe(connection, event)
    key = {"namespace": event.namespace, "name": event.name, "since": event.seq, "until": schema.NEVER}
    kept = {column: event.detail[column] for column in ("source", "reference")}
    connection.execute(insert(schema.subscriptions), key | kept)


def _unsubscribe(connection: Connection, event: Event) -> None:
    rows = schema.subscriptions
    _end(connection, rows, event.seq, and_(rows.c.namespace == event.namespace, rows.c.name == event.name))


def _block(connection: Connection, event: Event) -> int:
    found = block_id(connection, event.namespace, event.name)
    assert found is not None, f"entry {event.seq} speaks of a block before its first commit"
    return found


def _end(connection: Connection, rows: Table, seq: int, where: Any) -> None:
    connection.execute(update(rows).where(where, rows.c.until == schema.NEVER).values(until=seq))


_STEPS: Mapping[str, Any] = {
    Action.COMMIT: _commit,
    Action.TAG: _tag,
    Action.UNTAG: _untag,
    Action.MOVE: _move,
    Action.USE: _use,
    Action.EVALUATE: _evaluate,
    Action.ENROL: _enrol,
    Action.REVOKE: _revoke,
    Action.GRANT: _grant,
    Action.WITHDRAW: _withdraw,
    Action.PROTECT: _protect,
    Action.UNPROTECT: _unprotect,
    Action.SNAPSHOT: _snapshot,
    Action.DROP: _drop,
    Action.SIGN: _sign,
    Action.ANSWER: _answer,
    Action.SUBSCRIBE: _subscribe,
    Action.UNSUBSCRIBE: _unsubscribe,
}
