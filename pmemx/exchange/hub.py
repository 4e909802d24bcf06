"""Blocks in a repository of the Hugging Face Hub: a bank of their own, PEFT folders, a model card and checksums.

bank/             a governed bank with just these blocks and their history; what pmemx pulls from
adapters/<name>/  the newest version of each as a PEFT folder, and index.json from names to folders
README.md         the model card
SHA256SUMS        over all other files, as sha256sum writes it
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] (of whichever HTTP library this version of the client has)
    RevisionResolutionError,
)

from pmemx.core.atomic import write_whole
from pmemx.core.block import CapabilityBlock
from pmemx.core.errors import AccessDenied, ConfigError, CorruptBlock, StorageError
from pmemx.exchange.model_card import Shown, model_card
from pmemx.exchange.transfer import Transfer, copy
from pmemx.export.peft import PeftExport
from pmemx.store import catalogue, exchanged
from pmemx.store.bank import LEDGER_FILE, Bank
from pmemx.store.block_bytes import decode
from pmemx.store.governed import load
from pmemx.store.references import Name
from pmemx.store.verification import findings

HUB = "hub:"
"""In front of owner/name where a place may be something else as well."""
BANK, ADAPTERS, SUMS, README = "bank", "adapters", "SHA256SUMS", "README.md"
# Whoever reads the repository sees its journal; that should not tell who is logged in on the publisher's machine.
_PUBLISHER = "publisher"


@dataclass(frozen=True)
class Pushed:
    """What went to the Hub. url: of the commit. references: to the blocks in the repository's bank."""

    url: str
    references: tuple[str, ...]


def write_hub_folder(
    bank: Bank, references: Sequence[str], folder: Path, *, repo_id: str, redacted: bool = False
) -> tuple[str, ...]:
    """Write what a repository holds; returns references to the blocks in its bank.

    Every block leaves the bank through copy(), so that the same gate, redaction and notes apply, and lies in the namespace
    "shared" of the new bank: what namespaces mean is the affair of each bank.
    Raises ConfigError for no references, a folder with something in it, or two blocks of one name, and what copy() raises.
    """
    if not references:
        raise ConfigError(f"nothing to write for {repo_id}; name one block at least")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} holds something already; give a new folder")
    held = Bank(folder / BANK, principal=_PUBLISHER, clock=bank.clock)
    owners: dict[str, Name] = {}
    for reference in references:
        full = bank.found(reference).full
        if owners.setdefault(full.name, full) != full:
            raise ConfigError(f"{full} and {owners[full.name]} would share a name in {repo_id}; push them apart")
        copy(bank, held, reference, tags=None, redacted=redacted, to=f"{HUB}{repo_id}")
    names = tuple(sorted(owners))
    blocks = [_as_called(load(held, f"{name}@latest"), name) for name in names]
    versions = [held.find(f"{name}@latest") for name in names]
    folders = PeftExport().export(blocks, folder / ADAPTERS, versions=versions)
    shown = [_shown(held, name, f"{ADAPTERS}/{path.name}") for name, path in zip(names, folders, strict=True)]
    card = model_card(shown, repo_id, bank.ledger.bank_id())
    write_whole(folder / README, str(card).encode())
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    lines = (
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}" for path in files
    )
    write_whole(folder / SUMS, "".join(f"{line}\n" for line in lines).encode())
    return names


def push_to_hub(
    bank: Bank,
    references: Sequence[str],
    repo_id: str,
    *,
    folder: Path | None = None,
    private: bool = True,
    token: str | None = None,
    revision: str | None = None,
    redacted: bool = False,
    api: HfApi | None = None,
) -> Pushed:
    """Make a repository, where it is missing, that holds just these blocks, with their history, in one commit.

    folder: where to build it, and to keep it; by default a place that is cleared afterwards. private: also of a repository
    that is there already; a public one is refused then. revision: a branch. What an earlier push left is replaced; files
    that no push writes stay. api: by default the Hub that HF_ENDPOINT names. Raises StorageError where the Hub refuses.
    """
    api = api or HfApi(token=token)
    with _explained(repo_id):
        # Before anything leaves the bank: a repository that is refused has taken nothing.
        api.create_repo(repo_id, private=private, exist_ok=True, token=token)
        if private and not api.model_info(repo_id, token=token).private:
            raise AccessDenied(
                f"the repository {repo_id} is public, the push was to be private; make it private, or push with private=False"
            )
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True, token=token)
    with TemporaryDirectory(prefix="pmemx-") as scratch:
        folder = folder or Path(scratch) / "repository"
        names = write_hub_folder(bank, references, folder, repo_id=repo_id, redacted=redacted)
        with _explained(repo_id):
            done = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                token=token,
                revision=revision,
                commit_message=f"{len(names)} blocks: {', '.join(names)}"[:200],
                delete_patterns=[f"{BANK}/*", f"{ADAPTERS}/*"],
            )
    return Pushed(str(done.commit_url), names)


def pull_from_hub(
    bank: Bank,
    place: str | Path,
    references: Sequence[str] = (),
    *,
    tags: Sequence[str] | None = None,
    revision: str | None = None,
    token: str | None = None,
    base: str = "",
) -> tuple[Transfer, ...]:
    """Copy blocks, by default all, of a repository ("owner/name") or of a local folder of that form.

    Nothing is taken from a repository in which any byte is not as its own bank says. For tags and base see copy().
    """
    with opened_repository(place, revision=revision, token=token) as held:
        wanted = references or tuple(f"{name}@latest" for name in held.names())
        return tuple(copy(held, bank, reference, tags=tags, base=base) for reference in wanted)


@contextmanager
def opened_repository(place: str | Path, *, revision: str | None = None, token: str | None = None) -> Iterator[Bank]:
    """The bank of a repository, or of a local folder of that form, as a verified copy that is gone afterwards.

    A copy, because to open a ledger writes beside it, and neither the Hub's cache nor somebody's folder is ours to write.
    Raises StorageError when there is none to be had, CorruptBlock when it is not sound.
    """
    with TemporaryDirectory(prefix="pmemx-") as scratch:
        folder = _local(place)
        if folder is None:
            repo_id = str(place).removeprefix(HUB)
            with _explained(repo_id):
                # The Hub's cache keeps what was fetched before, so that only what is new comes over the network.
                found = snapshot_download(repo_id, revision=revision, token=token, allow_patterns=[f"{BANK}/*"])
            folder = Path(str(found))
        if not (folder / BANK / LEDGER_FILE).is_file():
            raise StorageError(
                f"{place} has no {BANK}/{LEDGER_FILE}; `pmemx bank push` makes repositories that have one"
            )
        copied = Path(scratch) / BANK
        shutil.copytree(folder / BANK, copied)
        held = Bank(copied, principal=_PUBLISHER)
        if faults := list(findings(held, tensors=decode)):
            raise CorruptBlock(
                f"{place} is not as its publisher's bank says, so that nothing was taken: {'; '.join(faults[:4])}; "
                "fetch it again, or ask the publisher"
            )
        yield held


def _local(place: str | Path) -> Path | None:
    if isinstance(place, Path):
        return place
    return None if place.startswith(HUB) or not (Path(place) / BANK).is_dir() else Path(place)


def _as_called(block: CapabilityBlock, name: str) -> CapabilityBlock:
    """A block may have come into the bank under another name than its card's."""
    return CapabilityBlock(replace(block.card, name=name), block.factors)


def _shown(held: Bank, name: str, folder: str) -> Shown:
    with held.ledger.reading() as now:
        found = catalogue.resolve(now, f"{name}@latest")
        scores = catalogue.scores(now, found.block, found.version.number)
        keys = tuple(one.key for one in exchanged.signatures(now, [found.version.digest]))
    manifest = held.manifest_of(found)
    return Shown(name, held.history(name), held.tags(name), scores, keys, manifest.rank, manifest.size, folder)


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    try:
        yield
    except (HTTPError, OSError, HFValidationError, EntryNotFoundError, RevisionResolutionError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StorageError(
            f"the Hub refuses {repo_id!r}: {cause}; check the name, the network (HF_HUB_OFFLINE) and the token (HF_TOKEN)"
        ) from error
