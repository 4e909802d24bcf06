"""A governed bank: content-addressed objects beside a relational ledger, as one principal sees it; imports no torch.

Opening it does nothing: no file is touched before the first question. What needs the tensors is in pmemx.store.governed;
lifecycle, access, snapshots and the rest each have a class of their own that takes a Bank.
"""

import getpass
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from pmemx.core.access import PERMISSIONS, Grant, Permission
from pmemx.core.card import Version
from pmemx.core.clock import Clock, system_clock
from pmemx.core.errors import ConfigError, CorruptBlock, StorageError
from pmemx.core.event import Action
from pmemx.core.objects import Objects
from pmemx.store import catalogue, changes
from pmemx.store.catalogue import Found, full_name
from pmemx.store.format_one import refuse_format_one
from pmemx.store.ledger import NOW, Ledger, Transaction
from pmemx.store.manifest import Manifest
from pmemx.store.places import open_objects
from pmemx.store.references import LATEST, SHARED, Name, check_name, check_namespace, split_namespace
from pmemx.store.tiered_objects import TieredObjects

LEDGER_FILE = "bank.db"


@dataclass(frozen=True)
class Bank:
    """A bank at a place.

    path: a folder, or an fsspec URL, for the objects. cold: another one, for what is archived. database: the ledger's URL; empty for an SQLite file in the folder.
    namespace: of names that are given without one. principal: who acts, by default PMEMX_PRINCIPAL, else the system's user.
    token: their secret where the bank asks for one, by default PMEMX_TOKEN. moment: the last entry of the journal that
    is seen; a bank of the past refuses changes. May be sent to another process.
    """

    path: str | Path
    database: str = ""
    namespace: str = SHARED
    principal: str = ""
    token: str = field(default="", repr=False)
    clock: Clock = system_clock
    moment: int = NOW
    cold: str | Path = ""

    def __post_init__(self) -> None:
        check_namespace(self.namespace)
        if not 0 <= self.moment <= NOW:
            raise ConfigError(
                f"the moment of a bank is an entry of its journal, 0 or more, and no journal has {self.moment}"
            )

    @cached_property
    def ledger(self) -> Ledger:
        """Who acts on which ledger. Raises StorageError for a bank of format 1."""
        refuse_format_one(self.path)
        return self.any_ledger

    @cached_property
    def any_ledger(self) -> Ledger:
        """The same, whatever format the bank is of: for bringing it to that of today."""
        who = self.principal or os.environ.get("PMEMX_PRINCIPAL", "") or _system_user()
        token = self.token or os.environ.get("PMEMX_TOKEN", "")
        location = self.database or str(Path(self.path) / LEDGER_FILE)
        return Ledger(location, who, token, self.clock, self.moment, self.namespace)

    @cached_property
    def objects(self) -> Objects:
        """Manifests and weights."""
        warm = open_objects(self.path)
        return TieredObjects(warm, open_objects(self.cold)) if self.cold else warm

    def at(self, moment: int) -> "Bank":
        """The same bank as it was after an entry of its journal; it refuses changes. What it says of uses is of today."""
        return replace(self, moment=moment)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Verbs inside are done together: another process sees all of them or none, and an error undoes them all."""
        with self.ledger.writing() as now:
            yield now

    def full(self, name: str) -> Name:
        """The block that a name without a version means."""
        return split_namespace(name, self.namespace)

    def find(self, reference: str) -> Version:
        """The version behind a reference. Raises UnknownBlock, AccessDenied."""
        return self.found(reference).version

    def found(self, reference: str) -> Found:
        """The same, with what only the ledger knows."""
        with self.ledger.reading() as now:
            return catalogue.resolve(now, reference)

    def names(self) -> tuple[str, ...]:
        """References to the blocks that may be chosen: readable, generated, activated or frozen, and not past their TTL."""
        with self.ledger.reading() as now:
            found = catalogue.selectable(now, time=now.now)
        return tuple(sorted(full_name(namespace, name, self.namespace) for namespace, name in found))

    def history(self, name: str) -> tuple[Version, ...]:
        """Versions of a block, oldest first."""
        with self.ledger.reading() as now:
            return tuple(found.version for found in catalogue.history(now, self.full(name)))

    def tags(self, name: str) -> dict[str, int]:
        """Tags of a block and the numbers they point at."""
        with self.ledger.reading() as now:
            known = catalogue.pointers(now, catalogue.block_of(now, self.full(name)))
        return {tag: number for tag, number in sorted(known.items()) if tag != LATEST}

    def tag(self, reference: str, tag: str, *, reason: str = "") -> Version:
        """Point a tag at a version. Raises ConfigError, AccessDenied, IllegalTransition, PolicyRefused."""
        with self.ledger.writing() as now:
            found = catalogue.resolve(now, reference)
            changes.tag(now, found, tag, reason=reason)
            return found.version

    def untag(self, name: str, tag: str, *, reason: str = "") -> None:
        """Take a tag away; the version stays."""
        with self.ledger.writing() as now:
            changes.untag(now, catalogue.resolve(now, name), tag, reason=reason)

    def rollback(self, name: str, number: int, *, message: str = "") -> Version:
        """Add a latest version with the bytes of an earlier one, unless the latest has them."""
        with self.ledger.writing() as now:
            found = catalogue.numbered(now, self.full(name), number, Permission.WRITE)
            return changes.roll_back(now, found, self.manifest_of(found), message=message).version

    def commit(
        self,
        manifest: Manifest,
        weights: bytes,
        *,
        name: Name | None = None,
        message: str = "",
        after: int | None = None,
    ) -> Version:
        """Add a version from the bytes that name it. name: by default the card's, in the bank's own namespace.

        The objects are whole on their disk before the ledger speaks of them: a crash leaves nothing half visible.
        """
        name = name or Name(self.namespace, manifest.card.name)
        check_name(name.name)
        if (len(weights), hashlib.sha256(weights).hexdigest()) != (manifest.size, manifest.weights):
            raise CorruptBlock(
                f"the weights of {name} are {len(weights)} bytes of other content than the {manifest.size} that its manifest "
                "names; encode the block again"
            )
        encoded = manifest.encode()
        with self.ledger.reading() as now:
            now.require(Permission.WRITE, name)
        for data in (weights, encoded):
            self.objects.put(data)
        with self.ledger.writing() as now:
            # The collector holds this lock while it deletes; whatever it took in between is put again.
            for data, digest in ((weights, manifest.weights), (encoded, manifest.digest)):
                if not self.objects.has(digest):
                    self.objects.put(data)
            return changes.commit(now, name, manifest, message=message, after=after).version

    def check_writable(self) -> None:
        """Raises StorageError or AccessDenied where no version of any name in the namespace could be added.

        Nothing is written. A role on a single block is enough, since which blocks are meant is not known here.
        """
        self.objects.check_writable()
        ledger = Path(self.ledger.location)
        if not self.database and ledger.exists() and not os.access(ledger, os.W_OK):
            raise StorageError(f"{ledger} may not be written by this user; let them write it, or choose another bank")
        with self.ledger.reading() as now:
            if not any(Permission.WRITE in PERMISSIONS[grant.role] for grant in self._grants_inside(now)):
                now.require(Permission.WRITE, Name(self.namespace, ""))

    def _grants_inside(self, now: Transaction) -> Iterator[Grant]:
        """What the principal may do to single blocks of the namespace."""
        if not now.identity.revoked:
            yield from (grant for grant in now.identity.grants if grant.scope.startswith(f"{self.namespace}/"))

    def manifest(self, reference: str) -> Manifest:
        """The manifest of a version. Raises CorruptBlock when its bytes are not those that were written."""
        return self.manifest_of(self.found(reference))

    def manifest_of(self, found: Found) -> Manifest:
        """The manifest of a version that was found."""
        try:
            return Manifest.decode(self.objects.get(found.version.digest))
        except CorruptBlock as error:
            raise CorruptBlock(f"manifest {found.version.digest[:12]} of {found.full}: {error}") from error

    def read(self, reference: str) -> tuple[Found, Manifest, bytes]:
        """A version, its manifest and its weights as bytes. Where the bank knows principals, the journal notes it.

        A read of the past is noted in the present.
        """
        found = self.found(reference)
        return found, *self.read_found(found)

    def read_found(self, found: Found) -> tuple[Manifest, bytes]:
        """The manifest and the weights of a version that was found; noted as by `read`."""
        manifest = self.manifest_of(found)
        weights = self.objects.get(manifest.weights)
        with self.ledger.reading() as now:
            governed = now.identity.governed
        if governed:
            with replace(self.ledger, moment=NOW).writing() as now:
                now.append(Action.READ, found.full, {"number": found.version.number, "digest": found.version.digest})
        return manifest, weights

    def reference(self, version: Version) -> str:
        """The reference that means this very version, for whoever reads it: a block may be called "law@1" too."""
        return f"{full_name(version.namespace, version.name, self.namespace)}@{version.number}"


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        return f"uid-{os.getuid()}"
