"""What differs between two versions, card, scores and updates; torch is loaded here, and only when somebody asks."""

import math
from threading import Lock
from typing import Any

from pmemx.page.questions import Json, figures, found_at
from pmemx.store import catalogue
from pmemx.store.bank import Bank
from pmemx.store.catalogue import Found
from pmemx.store.references import LATEST

# One at a time: two versions of a large block may fill the memory.
_turn = Lock()


def difference(bank: Bank, name: str, before: int, other: str, after: int) -> Json:
    """From version `before` of a block to version `after` of another one, or of the same where no other is named.

    0 stands for the latest as `after`, and for the one in front of that as `before`.
    """
    one, two = bank.full(name), bank.full(other or name)
    with bank.ledger.reading() as now:
        new = found_at(now, two, after)
        if not before:
            last = catalogue.number_behind(now, catalogue.block_of(now, one), LATEST)
            before = max(1, new.version.number - 1) if one == two else last
        old = found_at(now, one, before)
        recorded = [catalogue.scores(now, found.block, found.version.number) for found in (old, new)]
    measured = [figures(scores) for scores in recorded]
    return {
        "before": _named(old),
        "after": _named(new),
        "recorded": {
            metric: {
                "before": measured[0].get(metric),
                "after": measured[1].get(metric),
                "delta": recorded[1][metric].value - recorded[0][metric].value
                if all(metric in scores for scores in recorded)
                else None,
            }
            for metric in sorted({*recorded[0], *recorded[1]})
        },
        **_of_bytes(bank, old, new),
    }


def _of_bytes(bank: Bank, old: Found, new: Found) -> dict[str, Any]:
    from pmemx.core.block_diff import diff
    from pmemx.store.block_bytes import decode

    with _turn:
        found = diff(decode(*bank.read_found(old)), decode(*bank.read_found(new)))
    whole = [math.hypot(*(site.norms[side] for site in found.sites)) for side in (0, 1)]
    return found.to_json() | {
        "norms": whole,
        "distance": math.hypot(*(site.distance for site in found.sites)),
        "equal": old.version.digest == new.version.digest,
    }


def _named(found: Found) -> Json:
    own = found.version
    return {
        "name": catalogue.full_name(own.namespace, own.name),
        "number": own.number,
        "digest": own.digest,
        "message": found.message,
    }
