"""Verbs about moments of a whole bank: snapshot and restore. Looking at one is the option --at of every verb."""

import argparse
from typing import TYPE_CHECKING, Any

from pmemx.cli_bank.confirming import confirm
from pmemx.cli_bank.opening import moment, open_bank, open_existing, place
from pmemx.cli_bank.printing import counted, print_json, print_line, print_table
from pmemx.cli_bank.verbs import MOMENT, Verbs, add_message, add_yes
from pmemx.exit_codes import DONE, REFUSED

if TYPE_CHECKING:
    from pmemx.store.bank import Bank


def add_verbs(verbs: Verbs) -> None:
    """Declare them."""
    sentence = "name the present, list such moments, or forget one"
    parser = verbs.parsers.add_parser("snapshot", help=sentence, description=sentence)
    moments = Verbs(parser.add_subparsers(required=True, metavar="verb", dest="snapshot_verb"))
    moments.add("take", _take, "give the present a name; what it shows is kept by `gc`").add_argument("snapshot")
    moments.add("list", _list, "every snapshot, oldest first")
    moments.add("drop", _drop, "forget a snapshot; the history stays").add_argument("snapshot")
    restoring = verbs.add(
        "restore", _restore, "bring the whole bank back to a moment, by new entries: it can be undone"
    )
    restoring.add_argument("to", metavar="MOMENT", help=MOMENT)
    add_yes(restoring, "do not ask", dry="show what differs between then and now, and change nothing")
    add_message(restoring)


def _take(options: argparse.Namespace) -> int:
    from pmemx.store.snapshots import Snapshots

    snapshot = Snapshots(open_existing(options)).take(options.snapshot)
    if options.json:
        print_json(vars(snapshot))
    else:
        print_line(f"snapshot {snapshot.name} shows entry {snapshot.moment}")
    return DONE


def _list(options: argparse.Namespace) -> int:
    from pmemx.store.snapshots import Snapshots

    found = Snapshots(open_bank(options)).list()
    if options.json:
        print_json([vars(snapshot) for snapshot in found])
    elif found:
        print_table(("snapshot", "entry"), [(snapshot.name, snapshot.moment) for snapshot in found])
    else:
        print_line(f"{place(options)} has no snapshot")
    return DONE


def _drop(options: argparse.Namespace) -> int:
    from pmemx.store.snapshots import Snapshots

    Snapshots(open_existing(options)).drop(options.snapshot)
    if options.json:
        print_json({"dropped": options.snapshot})
    else:
        print_line(f"snapshot {options.snapshot} is dropped")
    return DONE


def _restore(options: argparse.Namespace) -> int:
    from pmemx.store.snapshots import Snapshots

    bank = open_existing(options)
    to = moment(bank, options.to)
    seq = Snapshots(bank).moment(to)
    if options.dry_run:
        return _preview(options, bank, seq)
    if not confirm(options, f"Bring the whole bank back to what it was after entry {seq}?"):
        return REFUSED
    restored = Snapshots(bank).restore(to, message=options.message)
    changed, archived = ([str(name) for name in names] for names in (restored.changed, restored.archived))
    if options.json:
        print_json({"moment": restored.moment, "changed": changed, "archived": archived})
    else:
        print_line(f"entry {restored.moment}: {counted(len(changed), 'block')} brought back, {len(archived)} archived")
    return DONE


def _preview(options: argparse.Namespace, bank: "Bank", seq: int) -> int:
    now, then = _standing(bank), _standing(bank.at(seq))
    differs = [name for name in sorted(now | then) if now.get(name) != then.get(name)]
    if options.json:
        changes = [{"name": name, "now": now.get(name), "then": then.get(name)} for name in differs]
        print_json({"moment": seq, "differs": changes})
    elif differs:
        print_table(("block", "now", "then"), [(name, _said(now.get(name)), _said(then.get(name))) for name in differs])
    else:
        print_line(f"nothing differs from entry {seq}")
    return DONE


def _standing(bank: "Bank") -> dict[str, dict[str, Any]]:
    """What a restore would compare, by block. What a restore archives, because it was not there, stands so already."""
    from pmemx.store import catalogue

    with bank.ledger.reading() as now:
        lines = catalogue.listing(now)
        tags = {
            line.full_name: catalogue.pointers(now, catalogue.block_of(now, bank.full(f"{line.namespace}/{line.name}")))
            for line in lines
        }
    return {
        line.full_name: {"digest": line.digest, "state": line.state, "tags": tags[line.full_name]} for line in lines
    }


def _said(standing: dict[str, Any] | None) -> str:
    if standing is None:
        return "not there"
    tags = ", ".join(f"{tag} → {number}" for tag, number in standing["tags"].items())
    return f"{standing['digest'][:12]} {standing['state']}, {tags}"
