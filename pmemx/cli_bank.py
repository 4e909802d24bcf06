"""pmemx bank: look into a bank on disk and change it; listing imports no torch."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pmemx.core.card import Version
from pmemx.store.index import FolderIndex

if TYPE_CHECKING:
    from pmemx.store.folder import FolderStore


def add_bank(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the `bank` command and its own commands."""
    bank = commands.add_parser("bank", help="list, show, verify, import, export, tag and roll back blocks")
    inner = bank.add_subparsers(required=True, metavar="command")

    def add(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        parser = inner.add_parser(name, help=help)
        parser.add_argument("--bank", type=Path, default=Path("bank"), help="folder of the bank (default: bank)")
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.set_defaults(command=run)
        return parser

    reference = 'a name, "name@3", "name@tag" or a digest'
    add("list", _list, "every block's latest version")
    add("show", _show, "one version in full").add_argument("reference", help=reference)
    add("history", _history, "every version of a name").add_argument("name")
    add("verify", _verify, "check every stored byte")
    importing = add("import", _import, "add ordinary PEFT LoRA folders; what low-rank factors cannot hold is refused")
    importing.add_argument("folders", nargs="+", type=Path)
    importing.add_argument("--name", default="", help="name of the block (default: the folder's)")
    importing.add_argument("--domain", default="", help="what it was trained on (default: its name)")
    importing.add_argument("--base", default="", help="fingerprint of the base model, where it is known")
    exporting = add("export", _export, "write blocks as PEFT folders")
    exporting.add_argument("folder", type=Path)
    exporting.add_argument("references", nargs="*", help=f"{reference} (default: every block)")
    exporting.add_argument(
        "--portable", action="store_true", help="alpha = r, one rank, no patterns: safe in any client"
    )
    tagging = add("tag", _tag, "point a tag at a version")
    tagging.add_argument("reference", help=reference)
    tagging.add_argument("tag")
    rolling = add("rollback", _rollback, "make an earlier version the latest again; the history is kept")
    rolling.add_argument("name")
    rolling.add_argument("number", type=int)


def _list(options: argparse.Namespace) -> int:
    index = FolderIndex(options.bank)
    _print_versions([index.find(f"{name}@latest") for name in index.names()], options)
    return 0


def _history(options: argparse.Namespace) -> int:
    _print_versions(FolderIndex(options.bank).history(options.name), options)
    return 0


def _show(options: argparse.Namespace) -> int:
    index = FolderIndex(options.bank)
    version = index.find(options.reference)
    sites = [vars(site) for site in index.manifest(version.digest).sites]
    row = _row(version, index) | {"card": _card(version), "sites": sites}
    print(json.dumps(row, indent=1, ensure_ascii=False, default=dict))
    return 0


def _verify(options: argparse.Namespace) -> int:
    findings = _store(options).verify()
    names = FolderIndex(options.bank).names() if not findings else ()
    if options.json:
        print(json.dumps(findings, indent=1, ensure_ascii=False))
    else:
        print("\n".join(findings) or f"sound: {len(names)} blocks, every byte as it was written")
    return 1 if findings else 0


def _import(options: argparse.Namespace) -> int:
    from pmemx.core.errors import ConfigError, PmemxError
    from pmemx.core.peft_folder import read_peft_folder

    if options.name and len(options.folders) > 1:
        raise ConfigError(
            f"--name {options.name!r} is one name for {len(options.folders)} folders; import them one by one"
        )
    store, versions, refused = _store(options), [], []
    for folder in options.folders:
        try:
            block = read_peft_folder(folder, name=options.name, domain=options.domain, base=options.base)
            versions.append(store.put(block))
        except PmemxError as error:
            refused.append(f"{type(error).__name__}: {error}")
    _print_versions(versions, options)
    if refused:
        raise PmemxError("\n".join((f"{len(refused)} of {len(options.folders)} folders refused", *refused)))
    return 0


def _export(options: argparse.Namespace) -> int:
    from pmemx.export.peft import PeftExport

    store = _store(options)
    blocks = [store.get(reference) for reference in options.references or store.names()]
    paths = PeftExport(portable=options.portable).export(blocks, options.folder)
    print(json.dumps([str(path) for path in paths]) if options.json else "\n".join(map(str, paths)))
    return 0


def _tag(options: argparse.Namespace) -> int:
    _print_versions([FolderIndex(options.bank).tag(options.reference, options.tag)], options)
    return 0


def _rollback(options: argparse.Namespace) -> int:
    _print_versions([FolderIndex(options.bank).rollback(options.name, options.number)], options)
    return 0


def _store(options: argparse.Namespace) -> "FolderStore":
    from pmemx.store.folder import FolderStore

    return FolderStore(options.bank)


def _row(version: Version, index: FolderIndex) -> dict[str, object]:
    manifest, card = index.manifest(version.digest), version.card
    return {
        "name": version.name,
        "version": version.number,
        "digest": version.digest,
        "domain": card.domain,
        "base": card.base,
        "base_name": card.base_name,
        "rank": max(site.rank for site in manifest.sites),
        "sites": len(manifest.sites),
        "bytes": manifest.size,
        "made_by": card.made_by,
        "created": card.created,
        "restores": version.restores,
        "tags": sorted(tag for tag, number in index.tags(version.name).items() if number == version.number),
    }


def _print_versions(versions: Sequence[Version], options: argparse.Namespace) -> None:
    index = FolderIndex(options.bank)
    rows = [_row(version, index) for version in versions]
    if options.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    if not rows:
        print(f"{options.bank} holds no block")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE)
    for column in ("name", "version", "domain", "base", "rank", "bytes", "tags", "digest"):
        table.add_column(column, justify="right" if column in ("version", "rank", "bytes") else "left", overflow="fold")
    for row in rows:
        short = row | {"digest": str(row["digest"])[:12], "base": row["base_name"] or str(row["base"])[:12]}
        short["tags"] = ", ".join(version_tags) if isinstance(version_tags := row["tags"], list) else ""
        # Text, because a name may hold brackets, which a string would lose as markup.
        table.add_row(*(Text(str(short[str(column.header)])) for column in table.columns))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _card(version: Version) -> dict[str, object]:
    from pmemx.core.canonical import plain

    card = plain(version.card)
    assert isinstance(card, dict)
    return card
