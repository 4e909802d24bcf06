"""Who may do what to which block: a decision with its reason from a principal, an object and a purpose."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from pmemx.core.card import Sensitivity
from pmemx.core.errors import AccessDenied


class Permission(StrEnum):
    """What one may do to a block. execute: activate it in a model. administer: grant and revoke."""

    READ = "read"
    WRITE = "write"
    DELETE = "delete"
    EXECUTE = "execute"
    ADMINISTER = "administer"


class Role(StrEnum):
    """A set of permissions under a name."""

    READER = "reader"
    RUNNER = "runner"
    EDITOR = "editor"
    OWNER = "owner"


PERMISSIONS: Mapping[Role, frozenset[Permission]] = MappingProxyType(
    {
        Role.READER: frozenset({Permission.READ}),
        Role.RUNNER: frozenset({Permission.READ, Permission.EXECUTE}),
        Role.EDITOR: frozenset({Permission.READ, Permission.EXECUTE, Permission.WRITE}),
        Role.OWNER: frozenset(Permission),
    }
)
EVERYTHING = "*"


@dataclass(frozen=True)
class Grant:
    """A role on a scope: "*" (the whole bank), a namespace ("team:legal"), or one block ("team:legal/contracts")."""

    principal: str
    role: Role
    scope: str

    def covers(self, namespace: str, name: str) -> bool:
        """Whether the scope holds that block. An empty name stands for the whole namespace, an empty namespace for the bank."""
        return self.scope == EVERYTHING or (bool(namespace) and self.scope in (namespace, f"{namespace}/{name}"))


class Purpose(StrEnum):
    """What for: the calling context of a decision. leave: the block would be copied out of the bank."""

    WITHIN = "within"
    LEAVE = "leave"
    LEAVE_REDACTED = "leave_redacted"


@dataclass(frozen=True)
class Request:
    """One question: may the principal do that to namespace/name? sensitivity: of the block's card."""

    principal: str
    permission: Permission
    namespace: str = ""
    name: str = ""
    purpose: Purpose = Purpose.WITHIN
    sensitivity: str = Sensitivity.INTERNAL.value

    @property
    def subject(self) -> str:
        """What it is about, readable."""
        return f"{self.namespace}/{self.name}".strip("/") or "the bank"


@dataclass(frozen=True)
class Decision:
    """The answer and why."""

    allowed: bool
    request: Request
    reason: str

    def enforce(self) -> None:
        """Raises AccessDenied when the answer is no."""
        if not self.allowed:
            request = self.request
            raise AccessDenied(
                f"{request.principal!r} may not {request.permission.value} {request.subject}: {self.reason}"
            )


def decide(request: Request, grants: Iterable[Grant], *, governed: bool, revoked: bool = False) -> Decision:
    """The decision on a request. governed: whether the bank knows any principal; one that knows none trusts everybody.

    Sensitivity is asked before permission: no role lets a secret block leave, nor a confidential one unredacted.
    """
    if revoked:
        return Decision(False, request, "this principal was revoked; ask an owner of the bank")
    leaving = request.purpose is not Purpose.WITHIN
    if leaving and request.sensitivity == Sensitivity.SECRET:
        return Decision(False, request, "it is secret and never leaves the bank; commit a version of lower sensitivity")
    if request.purpose is Purpose.LEAVE and request.sensitivity == Sensitivity.CONFIDENTIAL:
        return Decision(False, request, "it is confidential and leaves the bank only redacted; ask for that (--redact)")
    if not governed:
        return Decision(True, request, "the bank knows no principals and trusts everybody who can open it")
    if request.namespace == f"user:{request.principal}":
        return Decision(True, request, "it is the principal's own namespace")
    for grant in grants:
        theirs = grant.principal == request.principal and grant.covers(request.namespace, request.name)
        if theirs and request.permission in PERMISSIONS[grant.role]:
            return Decision(True, request, f"{grant.role.value} of {grant.scope}")
    return Decision(
        False, request, f"no role of theirs gives it; an owner may grant one (pmemx bank grant {request.principal} ...)"
    )
