"""Verbs that move blocks out of a bank and between banks: export, checkout, pull, push, and subscriptions."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pmemx.cli_bank.opening import open_bank, open_existing, place
from pmemx.cli_bank.printing import print_json, print_line, print_table
from pmemx.cli_bank.verbs import REFERENCE, Verbs
from pmemx.core.errors import ConfigError, StorageError
from pmemx.exit_codes import DONE, FINDING

if TYPE_CHECKING:
    from pmemx.exchange.transfer import Transfer
    from pmemx.store.bank import Bank
    from pmemx.store.references import Name

SOURCE = 'another bank: a folder, "PLACE|DATABASE", or hub:owner/name'


def add_verbs(verbs: Verbs) -> None:
    """Declare them."""
    exporting = verbs.add(
        "export",
        _export,
        "write blocks as PEFT folders beside those of earlier exports, past the gate that sensitivity sets",
    )
    exporting.add_argument("folder", type=Path)
    exporting.add_argument("references", nargs="*", help=f"{REFERENCE} (default: every block that may be chosen)")
    _add_redact(exporting)
    exporting.add_argument(
        "--portable", action="store_true", help="alpha = r, one rank, no patterns: safe in any client"
    )
    exporting.add_argument(
        "--sign", type=Path, metavar="KEY", help="PEM file with the private key that signs each folder"
    )
    checking_out = verbs.add("checkout", _checkout, "write one version to a folder: its manifest and its PEFT adapter")
    checking_out.add_argument("reference", help=REFERENCE)
    checking_out.add_argument("folder", type=Path)
    _add_redact(checking_out)
    pulling = verbs.add("pull", _pull, "copy blocks with their history from another bank")
    pulling.add_argument("source", help=SOURCE)
    pulling.add_argument("references", nargs="*", help=f"{REFERENCE} (default: every block that may be chosen there)")
    pulling.add_argument("--base", default="", help="fingerprint that their cards must carry")
    _add_copying(pulling)
    pushing = verbs.add(
        "push", _push, "copy blocks with their history to another bank; on the Hub they replace what is there"
    )
    pushing.add_argument("target", help=SOURCE)
    pushing.add_argument("references", nargs="+", help=REFERENCE)
    pushing.add_argument("--public", action="store_true", help="a new repository of the Hub is for everybody to see")
    _add_copying(pushing)
    subscribing = verbs.add("subscribe", _subscribe, "let a block follow a tag of another bank, from the next sync on")
    subscribing.add_argument("source", help=SOURCE)
    subscribing.add_argument("reference", metavar="NAME@TAG")
    subscribing.add_argument("--into", default="", metavar="NAME", help="its name here (default: the same)")
    verbs.add("unsubscribe", _unsubscribe, "let a block follow nothing; what was pulled stays").add_argument("name")
    verbs.add("subscriptions", _subscriptions, "which blocks follow other banks")
    verbs.add("sync", _sync, "bring what the followed tags moved to; 1 where a source had a problem")


def _add_redact(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--redact", action="store_true", help="mask what a card should not tell; confidential blocks ask for it"
    )


def _add_copying(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--into", default="", metavar="NAME", help="name of a single block in the target (default: the same)"
    )
    parser.add_argument(
        "--tag", action="append", default=[], help="a tag to bring along; may be said again (default: none)"
    )
    parser.add_argument("--all-tags", action="store_true", help="bring every tag along")
    _add_redact(parser)


def _export(options: argparse.Namespace) -> int:
    from pmemx.export.peft import PeftExport
    from pmemx.store.leaving import leave

    bank = open_existing(options)
    wanted = options.references or list(bank.names())
    leaving = leave(bank, wanted, redacted=options.redact, to=str(options.folder))
    try:
        exporter, versions = PeftExport(portable=options.portable), [one.version for one in leaving]
        paths = exporter.export([one.block for one in leaving], options.folder, versions=versions)
    except OSError as error:
        raise _unwritable(options.folder, error) from error
    if options.sign:
        from pmemx.store.signature import sign_export

        # Each on its own, since each may travel alone, then the whole with its index.
        for path in (*paths, options.folder):
            sign_export(path, options.sign)
    if options.json:
        print_json([str(path) for path in paths])
    else:
        for path in paths:
            print_line(str(path))
    return DONE


def _checkout(options: argparse.Namespace) -> int:
    from pmemx.core.atomic import write_whole
    from pmemx.core.peft_folder import write_peft_folder
    from pmemx.export.peft import told_of, write_told
    from pmemx.store.leaving import leave
    from pmemx.store.signature import MANIFEST

    bank = open_existing(options)
    (one,) = leave(bank, [options.reference], redacted=options.redact, to=str(options.folder))
    try:
        folder = write_peft_folder(one.block, options.folder)
        write_whole(folder / MANIFEST, one.encoded)
        write_told(folder, told_of(one.version))
    except OSError as error:
        raise _unwritable(options.folder, error) from error
    if options.json:
        print_json({"folder": str(folder), "digest": one.digest})
    else:
        print_line(f"{folder} holds version {one.digest[:12]}")
    return DONE


def _unwritable(folder: Path, error: OSError) -> StorageError:
    return StorageError(f"{folder} cannot be written ({error}); free space, change permissions, or name another folder")


def _pull(options: argparse.Namespace) -> int:
    from pmemx.exchange.source import opened
    from pmemx.exchange.transfer import copy

    bank, tags = open_bank(options), _tags(options)
    with opened(options.source, bank) as source:
        references = options.references or list(source.names())
        into = _into(options, bank, references)
        found = [
            copy(
                source, bank, text, into=into, tags=tags, redacted=options.redact, base=options.base, to=place(options)
            )
            for text in references
        ]
    return _print_transfers(options, found)


def _push(options: argparse.Namespace) -> int:
    from pmemx.exchange.hub import HUB, push_to_hub
    from pmemx.exchange.transfer import copy

    bank, references = open_existing(options), options.references
    if options.target.startswith(HUB):
        pushed = push_to_hub(
            bank, references, options.target.removeprefix(HUB), private=not options.public, redacted=options.redact
        )
        if options.json:
            print_json({"url": pushed.url, "references": list(pushed.references)})
        else:
            print_line(f"{', '.join(pushed.references)}: {pushed.url}")
        return DONE
    target, into = _target(bank, options.target), _into(options, bank, references)
    found = [
        copy(bank, target, text, into=into, tags=_tags(options), redacted=options.redact, to=options.target)
        for text in references
    ]
    return _print_transfers(options, found)


def _target(bank: "Bank", text: str) -> "Bank":
    """A bank that a push may make."""
    from pmemx.exchange.source import checked_source
    from pmemx.store.bank import Bank

    folder, _, database = checked_source(text).partition("|")
    return Bank(folder, database, namespace=bank.namespace, principal=bank.ledger.principal)


def _into(options: argparse.Namespace, bank: "Bank", references: Sequence[str]) -> "Name | None":
    if not options.into:
        return None
    if len(references) != 1:
        raise ConfigError(f"--into {options.into!r} is one name for {len(references)} blocks; copy them one by one")
    return bank.full(options.into)


def _tags(options: argparse.Namespace) -> tuple[str, ...] | None:
    return None if options.all_tags else tuple(options.tag)


def _print_transfers(options: argparse.Namespace, found: Sequence["Transfer"]) -> int:
    if options.json:
        print_json([_transfer(one) for one in found])
    elif found:
        columns = ("block", "version", "versions added", "tags", "scores", "signatures")
        rows = [list(_transfer(one).values()) for one in found]
        print_table(columns, [(*row[:2], len(row[2]), _pointers(row[3]), *row[4:]) for row in rows])
    else:
        print_line("no block is there to be copied")
    return DONE


def _transfer(one: "Transfer") -> dict[str, Any]:
    from pmemx.store.catalogue import full_name

    return {
        "name": full_name(one.version.namespace, one.version.name),
        "version": one.version.number,
        "added": list(one.added),
        "tags": dict(one.tags),
        "scores": one.scores,
        "signatures": one.signatures,
    }


def _pointers(tags: dict[str, int]) -> str:
    return ", ".join(f"{tag} → {number}" for tag, number in tags.items())


def _subscribe(options: argparse.Namespace) -> int:
    from pmemx.exchange.subscription import subscribe

    bank = open_bank(options)
    into = bank.full(options.into) if options.into else None
    made = subscribe(bank, options.source, options.reference, into=into)
    if options.json:
        print_json({"name": str(made.name), "source": made.source, "reference": made.reference})
    else:
        print_line(f"{made.name} follows {made.reference} of {made.source}")
    return DONE


def _unsubscribe(options: argparse.Namespace) -> int:
    from pmemx.exchange.subscription import unsubscribe

    name = options.name
    unsubscribe(open_existing(options), name)
    if options.json:
        print_json({"unsubscribed": name})
    else:
        print_line(f"{name} follows nothing")
    return DONE


def _subscriptions(options: argparse.Namespace) -> int:
    from pmemx.exchange.subscription import subscriptions

    found = subscriptions(open_bank(options))
    rows = [{"name": str(one.name), "source": one.source, "reference": one.reference} for one in found]
    if options.json:
        print_json(rows)
    elif rows:
        print_table(("block", "source", "follows"), [list(row.values()) for row in rows])
    else:
        print_line(f"no block of {place(options)} follows another bank")
    return DONE


def _sync(options: argparse.Namespace) -> int:
    from pmemx.exchange.subscription import sync

    found = sync(open_existing(options))
    rows = [
        {
            "name": str(one.subscription.name),
            "source": one.subscription.source,
            "reference": one.subscription.reference,
            "transfer": _transfer(one.transfer) if one.transfer else None,
            "problem": one.problem,
        }
        for one in found
    ]
    if options.json:
        print_json(rows)
    elif rows:
        told = [
            one.problem or ("brought up to date" if one.transfer and one.transfer.changed else "as it was")
            for one in found
        ]
        print_table(
            ("block", "source", "follows", ""),
            [(*list(row.values())[:3], text) for row, text in zip(rows, told, strict=True)],
        )
    else:
        print_line(f"no block of {place(options)} follows another bank")
    return FINDING if any(one.problem for one in found) else DONE
