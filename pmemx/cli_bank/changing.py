"""Verbs that add to a block: import, put, tag, untag, rollback, use, record and sign."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pmemx.cli_bank.opening import open_bank, open_existing
from pmemx.cli_bank.printing import counted, print_json, print_line, print_table
from pmemx.cli_bank.verbs import REFERENCE, Verbs, add_message, add_reason
from pmemx.core.errors import AccessDenied, ConfigError, PmemxError, StorageError
from pmemx.exit_codes import DONE

if TYPE_CHECKING:
    from pmemx.core.card import Version
    from pmemx.core.metric import Figure
    from pmemx.store.bank import Bank


def add_verbs(verbs: Verbs) -> None:
    """Declare them."""
    importing = verbs.add("import", _import, "add PEFT LoRA folders; what low-rank factors cannot hold is refused")
    importing.add_argument("folders", nargs="+", type=Path)
    importing.add_argument("--name", default="", help="name of the block (default: the folder's)")
    importing.add_argument("--domain", default="", help="what it was trained on (default: its name)")
    importing.add_argument("--base", default="", help="fingerprint of the base model, where it is known")
    add_message(importing)
    putting = verbs.add("put", _put, "commit the weights of a version with another card, as `show --json` prints one")
    putting.add_argument("reference", help=f"whose weights: {REFERENCE}")
    putting.add_argument("card", help='JSON file with the card, "-" for the standard input')
    add_message(putting)
    tagging = verbs.add("tag", _tag, "point a tag at a version; a protected tag asks for figures that meet its policy")
    tagging.add_argument("reference", help=REFERENCE)
    tagging.add_argument("tag")
    add_reason(tagging)
    untagging = verbs.add("untag", _untag, "take a tag away; the version stays")
    untagging.add_argument("name")
    untagging.add_argument("tag")
    add_reason(untagging)
    rolling = verbs.add("rollback", _rollback, "make an earlier version the latest again; the history is kept")
    rolling.add_argument("name")
    rolling.add_argument("number", type=int)
    add_message(rolling)
    using = verbs.add("use", _use, "note that a version served; a generated block becomes activated")
    using.add_argument("reference", help=REFERENCE)
    using.add_argument("--count", type=int, default=1, help="how often (default: 1)")
    using.add_argument("--relevance", type=float, default=1.0, help="how well, for one use (default: 1)")
    recording = verbs.add(
        "record", _record, "keep figures of a version; a protected tag that they break is rolled back"
    )
    recording.add_argument("reference", help=REFERENCE)
    recording.add_argument(
        "scores",
        help='JSON file: {"metric": number or {"value": ..., "low": ..., "high": ..., "n": ...}}, "-" for standard input',
    )
    recording.add_argument("--by", default="", help="what measured them")
    signing = verbs.add(
        "sign", _sign, "sign a version with a key of yours; its password is read from PMEMX_KEY_PASSWORD"
    )
    signing.add_argument("reference", help=REFERENCE)
    signing.add_argument("--key", type=Path, required=True, help="PEM file with the private key")
    signing.add_argument("--public", type=Path, required=True, metavar="KEY", help="PEM file with the public key")


def _import(options: argparse.Namespace) -> int:
    from pmemx.core.peft_folder import read_peft_folder
    from pmemx.store.block_bytes import encode

    if options.name and len(options.folders) > 1:
        raise ConfigError(
            f"--name {options.name!r} is one name for {len(options.folders)} folders; import them one by one"
        )
    bank, versions, refused = open_bank(options), [], []
    # A principal who may not even look is told so, whatever the folders hold.
    bank.ledger.bank_id()
    for folder in options.folders:
        try:
            block = read_peft_folder(folder, name=options.name, domain=options.domain, base=options.base)
            versions.append(bank.commit(*encode(block), message=options.message))
        except (AccessDenied, StorageError):
            raise
        except PmemxError as error:
            if len(options.folders) == 1:
                raise
            refused.append(f"{type(error).__name__}: {error}")
    _print_versions(options, bank, versions)
    if refused:
        raise PmemxError("\n".join((f"{len(refused)} of {len(options.folders)} folders refused", *refused)))
    return DONE


def _put(options: argparse.Namespace) -> int:
    from pmemx.cli_bank.card_document import card_of
    from pmemx.store.references import Name

    bank = open_existing(options)
    found, manifest, weights = bank.read(options.reference)
    card = card_of(read_json(options.card))
    name = Name(found.version.namespace, card.name)
    version = bank.commit(replace(manifest, card=card), weights, name=name, message=options.message)
    _print_versions(options, bank, [version])
    return DONE


def _tag(options: argparse.Namespace) -> int:
    bank = open_existing(options)
    version = bank.tag(options.reference, options.tag, reason=options.reason)
    _print_versions(options, bank, [version])
    return DONE


def _untag(options: argparse.Namespace) -> int:
    bank, name = open_existing(options), options.name
    bank.untag(name, options.tag, reason=options.reason)
    _print_versions(options, bank, [bank.find(name)])
    return DONE


def _rollback(options: argparse.Namespace) -> int:
    bank = open_existing(options)
    version = bank.rollback(options.name, options.number, message=options.message)
    _print_versions(options, bank, [version])
    return DONE


def _use(options: argparse.Namespace) -> int:
    from pmemx.store.life import Life

    bank, name = open_existing(options), options.reference
    Life(bank).use(name, count=options.count, relevance=options.relevance)
    if options.json:
        print_json({"reference": name, "uses": options.count})
    else:
        print_line(f"{name} was used {counted(options.count, 'time')}")
    return DONE


def _record(options: argparse.Namespace) -> int:
    from pmemx.store.evaluations import Evaluations

    bank, name = open_existing(options), options.reference
    values = read_json(options.scores)
    falls = Evaluations(bank).record(
        name, {metric: _figure(metric, value) for metric, value in values.items()}, by=options.by
    )
    if options.json:
        print_json({"recorded": sorted(values), "falls": [asdict(fall) for fall in falls]})
    else:
        print_line(f"{counted(len(values), 'figure')} recorded for {name}")
        for fall in falls:
            now = "is withdrawn" if fall.now is None else f"points at version {fall.now}"
            print_line(f"tag {fall.tag} {now}: {fall.reason}")
    return DONE


def _figure(metric: str, value: Any) -> "Figure":
    from pmemx.core.metric import Figure

    try:
        figure = Figure(**value) if isinstance(value, dict) else Figure(value)
    except TypeError as error:
        raise ConfigError(
            f"the figure of {metric!r} is {value!r:.80} ({error}); see `pmemx bank record --help`"
        ) from error
    for field, number in asdict(figure).items():
        if not isinstance(number, int | float | None) or isinstance(number, bool):
            raise ConfigError(f"{field} of {metric!r} is {number!r:.80}, which is no number; measure it again")
    return figure


def _sign(options: argparse.Namespace) -> int:
    from pmemx.store.signing import Signing

    name = options.reference
    key = Signing(open_existing(options)).sign(name, options.key, options.public)
    if options.json:
        print_json({"reference": name, "key": key})
    else:
        print_line(f"{name} is signed by key {key}")
    return DONE


def read_json(file: str) -> dict[str, Any]:
    """The object in a JSON file, "-" for the standard input. Raises ConfigError for what is none."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        value = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read as JSON ({error}); give a file with one object") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{file} holds a {type(value).__name__}; give a file with one object")
    return value


def _print_versions(options: argparse.Namespace, bank: "Bank", versions: Sequence["Version"]) -> None:
    from pmemx.store.catalogue import full_name

    rows = []
    for version in versions:
        full = f"{version.namespace}/{version.name}"
        tags = [tag for tag, number in bank.tags(full).items() if number == version.number]
        rows.append(
            {
                "name": full_name(version.namespace, version.name, bank.namespace),
                "version": version.number,
                "restores": version.restores,
                "tags": tags,
                "digest": version.digest,
            }
        )
    if options.json:
        print_json(rows)
    else:
        print_table(tuple(rows[0]) if rows else ("name",), [list(row.values()) for row in rows])
