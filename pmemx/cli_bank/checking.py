"""Verbs that check: verify, head, verify-signature, verify-export and schema."""

import argparse
from pathlib import Path

from pmemx.cli_bank.opening import open_bank, place
from pmemx.cli_bank.printing import counted, print_json, print_line
from pmemx.cli_bank.verbs import REFERENCE, Verbs
from pmemx.exit_codes import DONE, FINDING


def add_verbs(verbs: Verbs) -> None:
    """Declare them."""
    verifying = verbs.add(
        "verify", _verify, "check the journal's chain, every table and every stored byte; 1 on a finding"
    )
    verifying.add_argument(
        "--head", default="", metavar="HASH", help="a hash that `head` printed: nothing up to it was lost"
    )
    verifying.add_argument(
        "--digests", action="store_true", help="bytes by their digests alone, without reading tensors"
    )
    verbs.add(
        "head", _head, "number and hash of the last entry of the journal, to be noted elsewhere for `verify --head`"
    )
    signed = verbs.add("verify-signature", _verify_signature, "check that a key signed exactly the bytes of a version")
    signed.add_argument("reference", help=REFERENCE)
    _add_public(signed)
    exported = verbs.add(
        "verify-export", _verify_export, "check that a key signed exactly what an exported folder holds"
    )
    exported.add_argument("folder", type=Path)
    _add_public(exported)
    verbs.add("schema", _schema, "the JSON schema (draft 2020-12) of what `show --json` prints")


def _add_public(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--public", type=Path, required=True, metavar="KEY", help="PEM file with the public key")


def _verify(options: argparse.Namespace) -> int:
    from pmemx.store import catalogue
    from pmemx.store.verification import findings

    bank, tensors = open_bank(options), None
    if not options.digests:
        from pmemx.store.block_bytes import decode

        tensors = decode
    found = list(findings(bank, tensors=tensors, head=options.head))
    if options.json:
        print_json(found)
    elif found:
        for finding in found:
            print_line(finding)
    elif bank.ledger.bank_id():
        with bank.ledger.reading() as now:
            blocks, (seq, head) = len(catalogue.listing(now)), now.head
        what = "every byte as its digest says" if options.digests else "every byte as it was written"
        print_line(f"sound: {counted(blocks, 'block')}, {what}, the journal up to entry {seq} ({head})")
    else:
        print_line(f"{place(options)} holds no block")
    return FINDING if found else DONE


def _head(options: argparse.Namespace) -> int:
    from pmemx.store.journal import Journal

    seq, head = Journal(open_bank(options)).head()
    if options.json:
        print_json({"entry": seq, "hash": head})
    else:
        print_line(f"{seq} {head}")
    return DONE


def _verify_signature(options: argparse.Namespace) -> int:
    from pmemx.store.signature import key_id
    from pmemx.store.signing import Signing

    name = options.reference
    Signing(open_bank(options)).verify(name, options.public)
    return _tell(options, name, key_id(options.public))


def _verify_export(options: argparse.Namespace) -> int:
    from pmemx.store.signature import key_id, verify_export

    verify_export(options.folder, options.public)
    return _tell(options, str(options.folder), key_id(options.public))


def _tell(options: argparse.Namespace, what: str, key: str) -> int:
    if options.json:
        print_json({"signed": what, "key": key})
    else:
        print_line(f"{what} is as key {key[:12]} signed it")
    return DONE


def _schema(options: argparse.Namespace) -> int:
    from pmemx.core.card_schema import CARD_SCHEMA

    print_json(dict(CARD_SCHEMA))
    return DONE
