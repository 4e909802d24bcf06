"""Verbs that move blocks through their life: archive, unarchive, freeze, thaw, expire, merge, sweep, gc and settle."""

import argparse

from pmemx.cli_bank.confirming import confirm
from pmemx.cli_bank.opening import open_existing
from pmemx.cli_bank.printing import counted, print_json, print_line, print_table
from pmemx.cli_bank.verbs import REFERENCE, Verbs, add_reason, add_yes
from pmemx.exit_codes import DONE, REFUSED


def add_verbs(verbs: Verbs) -> None:
    """Declare them."""
    for name, run, sentence in (
        ("archive", _archive, "take a block out of selection"),
        ("unarchive", _unarchive, "bring an archived or merged block back into selection"),
        ("freeze", _freeze, "forbid every change of a block that may be chosen, until it is thawed"),
        ("thaw", _thaw, "end a freeze: the block is again what it was before"),
    ):
        parser = verbs.add(name, run, sentence)
        parser.add_argument("name")
        add_reason(parser)
    expiring = verbs.add("expire", _expire, "leave only a tombstone of an archived block; `gc` then deletes its bytes")
    expiring.add_argument("name")
    add_reason(expiring)
    add_yes(expiring, "do not ask")
    merging = verbs.add("merge", _merge, "mark blocks as taken up in a version that was made from them")
    merging.add_argument("names", nargs="+")
    merging.add_argument("--into", required=True, metavar="REFERENCE", help=REFERENCE)
    add_reason(merging)
    sweeping = verbs.add(
        "sweep", _sweep, "archive and expire what TTL and disuse call for; shows it, and does it with --yes"
    )
    sweeping.add_argument(
        "--archive-below",
        type=float,
        default=0.0,
        metavar="WORTH",
        help="archive what is worth less (default: nothing)",
    )
    sweeping.add_argument(
        "--grace", type=float, default=0.0, metavar="SECONDS", help="from the archive by TTL to the expiry (default: 0)"
    )
    sweeping.add_argument(
        "--expire-archived-after",
        type=float,
        metavar="SECONDS",
        help="expire what was archived otherwise (default: never)",
    )
    add_yes(sweeping, "do it", dry="show what would be done; the default")
    collecting = verbs.add("gc", _collect, "delete bytes that nobody can reach; shows them, and deletes with --yes")
    collecting.add_argument(
        "--grace",
        type=float,
        metavar="SECONDS",
        help="leave alone what no version names and is younger (default: a day)",
    )
    add_yes(collecting, "delete them", dry="show what would be deleted; the default")
    verbs.add(
        "settle", _settle, "move the weights of archived and merged blocks to the --cold place, and all others back"
    )


def _archive(options: argparse.Namespace) -> int:
    from pmemx.store.life import Life

    Life(open_existing(options)).archive(options.name, reason=options.reason)
    return _tell_state(options)


def _unarchive(options: argparse.Namespace) -> int:
    from pmemx.store.life import Life

    Life(open_existing(options)).restore(options.name, reason=options.reason)
    return _tell_state(options)


def _freeze(options: argparse.Namespace) -> int:
    from pmemx.store.life import Life

    Life(open_existing(options)).freeze(options.name, reason=options.reason)
    return _tell_state(options)


def _thaw(options: argparse.Namespace) -> int:
    from pmemx.store.life import Life

    Life(open_existing(options)).thaw(options.name, reason=options.reason)
    return _tell_state(options)


def _expire(options: argparse.Namespace) -> int:
    from pmemx.store.life import Life

    bank, name = open_existing(options), options.name
    if not confirm(options, f"Expire {name}? Its bytes can be collected afterwards, and only a tombstone stays."):
        return REFUSED
    Life(bank).expire(name, reason=options.reason)
    return _tell_state(options)


def _merge(options: argparse.Namespace) -> int:
    from pmemx.store.life import Life

    names, into = options.names, options.into
    Life(open_existing(options)).merge(names, into, reason=options.reason)
    if options.json:
        print_json({"merged": names, "into": into})
    else:
        print_line(f"{', '.join(names)}: merged into {into}")
    return DONE


def _tell_state(options: argparse.Namespace) -> int:
    from pmemx.store.life import Life

    name = options.name
    state = Life(open_existing(options)).state(name).value
    if options.json:
        print_json({"name": name, "state": state})
    else:
        print_line(f"{name} is {state}")
    return DONE


def _sweep(options: argparse.Namespace) -> int:
    from pmemx.store.life import Keeping, Life

    keeping = Keeping(options.archive_below, options.grace, options.expire_archived_after)
    moves = Life(open_existing(options)).sweep(keeping, dry_run=not options.yes)
    if options.json:
        rows = [
            {"name": str(move.name), "from": move.before.value, "to": move.after.value, "trigger": move.trigger.value}
            for move in moves
        ]
        print_json({"done": options.yes, "moves": rows})
        return DONE
    if moves:
        columns = ("block", "from", "to", "trigger")
        print_table(columns, [(str(m.name), m.before.value, m.after.value, m.trigger.value) for m in moves])
    print_line(_summary(options, len(moves), counted(len(moves), "move"), "to do"))
    return DONE


def _collect(options: argparse.Namespace) -> int:
    from pmemx.store.collector import DAY, Collector

    grace = DAY if options.grace is None else options.grace
    found = Collector(open_existing(options), grace).collect(dry_run=not options.yes)
    if options.json:
        print_json({"done": options.yes, "garbage": [vars(item) for item in found]})
        return DONE
    if found:
        print_table(("object", "bytes", "reason"), [(item.name, item.size, item.reason) for item in found])
    what = f"{counted(len(found), 'object')}, {counted(sum(item.size for item in found), 'byte')}"
    print_line(_summary(options, len(found), what, "to delete"))
    return DONE


def _summary(options: argparse.Namespace, count: int, what: str, verb: str) -> str:
    return what + ("" if options.yes or not count else f" {verb}; nothing was changed, --yes does it")


def _settle(options: argparse.Namespace) -> int:
    from pmemx.store.tiers import settle

    settled = settle(open_existing(options))
    if options.json:
        print_json({"cooled": list(settled.cooled), "warmed": list(settled.warmed)})
    else:
        print_line(f"{counted(len(settled.cooled), 'object')} went to {options.cold}, {len(settled.warmed)} came back")
    return DONE
