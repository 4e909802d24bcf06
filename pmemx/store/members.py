"""Principals of a bank and what they may do: enrolment, roles on scopes, revocation, and decisions with their reason.

The ledger of a folder guards against mistakes: whoever may write its files may write anything. The journal's chain and
signatures then tell. A token, where one is set, is asked on every path.
"""

import re
from dataclasses import dataclass

from sqlalchemy import select

from pmemx.core.access import EVERYTHING, Decision, Grant, Permission, Purpose, Role
from pmemx.core.errors import ConfigError
from pmemx.core.event import Action
from pmemx.store import catalogue, schema
from pmemx.store.bank import Bank
from pmemx.store.ledger import Identity, Transaction, identify, token_digest
from pmemx.store.references import Name, check_namespace, split_namespace

_PRINCIPAL = re.compile(r"[\w.@+-]{1,64}")


@dataclass(frozen=True)
class Member:
    """A principal. guarded: whether a token is asked."""

    name: str
    guarded: bool
    revoked: bool
    grants: tuple[Grant, ...]


@dataclass(frozen=True)
class Members:
    """Who may do what in a bank. A bank without members trusts everybody who can open it."""

    bank: Bank

    def enrol(
        self, principal: str, *, token: str = "", role: Role | None = None, scope: str = EVERYTHING
    ) -> tuple[Member, ...]:
        """Make a principal known, or known again, with a role where one is given. Asks ADMINISTER on the bank.

        token: a secret that they must show from now on. Without one a member keeps theirs; to take it away, revoke them
        first. The first enrolment ends the time in which the bank trusts everybody: its caller becomes owner of everything
        as well, or they would be locked out. Returns whom the call made members: the caller, where they were the first,
        then the principal. Raises ConfigError for what is no principal, and for a caller who enrols themselves first and
        not as owner of everything.
        """
        _check_principal(principal)
        with self.bank.ledger.writing() as now:
            now.require(Permission.ADMINISTER)
            caller = now.identity.principal
            first = not now.identity.governed
            if first and principal == caller and (role, scope) != (Role.OWNER, EVERYTHING):
                raise ConfigError(
                    f"the first member must own everything, or nobody could enrol others; "
                    f"enrol {principal!r} as {Role.OWNER.value} of {EVERYTHING!r}"
                )
            made = [principal]
            if first and principal != caller:
                _check_principal(caller)
                made.insert(0, caller)
                now.append(Action.ENROL, None, {"principal": caller, "token": ""})
                self._grant(now, Grant(caller, Role.OWNER, EVERYTHING))
            secret = token_digest(token) if token else _token_of(now, principal)
            now.append(Action.ENROL, None, {"principal": principal, "token": secret})
            if role is not None:
                self._grant(now, Grant(principal, role, scope))
            return tuple(_member(now, name) for name in made)

    def grant(self, principal: str, role: Role, scope: str) -> None:
        """Give a role on "*", a namespace or one block. Asks ADMINISTER on that scope."""
        with self.bank.ledger.writing() as now:
            now.require(Permission.ADMINISTER, _name(scope))
            self._grant(now, Grant(principal, role, scope))

    def withdraw(self, principal: str, role: Role, scope: str) -> None:
        """Take a role away. Raises ConfigError when they do not have it, or when nobody would own the bank."""
        with self.bank.ledger.writing() as now:
            now.require(Permission.ADMINISTER, _name(scope))
            grant = Grant(principal, role, scope)
            if grant not in identify(now.connection, principal).grants:
                raise ConfigError(f"{principal!r} is not {role.value} of {scope}; see pmemx bank members")
            if (role, scope) == (Role.OWNER, EVERYTHING):
                self._keep_an_owner(now, principal)
            now.append(Action.WITHDRAW, None, {"principal": principal, "role": role.value, "scope": scope})

    def revoke(self, principal: str, *, reason: str = "") -> None:
        """Refuse a principal everything from now on. Raises ConfigError for a stranger and for the last owner."""
        with self.bank.ledger.writing() as now:
            now.require(Permission.ADMINISTER)
            self._known(now, principal)
            self._keep_an_owner(now, principal)
            now.append(Action.REVOKE, None, {"principal": principal, "reason": reason})

    def list(self) -> tuple[Member, ...]:
        """Every principal by name. Asks ADMINISTER on the bank."""
        with self.bank.ledger.reading() as now:
            now.require(Permission.ADMINISTER)
            names = now.connection.execute(select(schema.principals.c.name)).scalars().all()
            return tuple(_member(now, name) for name in sorted(names))

    def decide(
        self, permission: Permission, reference: str = "", *, principal: str = "", purpose: Purpose = Purpose.WITHIN
    ) -> Decision:
        """Whether a principal, by default the caller, may do that to a block ("" for the bank), and why.

        What is decided about others is told to ADMINISTER only.
        """
        with self.bank.ledger.reading() as now:
            if principal and principal != now.identity.principal:
                now.require(Permission.ADMINISTER)
            who: Identity = identify(now.connection, principal or now.identity.principal)
            if not reference:
                return who.decide(permission, purpose=purpose)
            name = self.bank.full(reference)
            if not now.identity.decide(Permission.READ, name).allowed:
                # Whoever may not read a block is told neither its sensitivity nor whether it exists.
                return who.decide(permission, name, purpose=purpose)
            sensitivity = catalogue.sensitivity_of(now, name)
            return who.decide(permission, name, purpose=purpose, sensitivity=sensitivity)

    def _grant(self, now: Transaction, grant: Grant) -> None:
        _name(grant.scope)
        self._known(now, grant.principal)
        if grant not in identify(now.connection, grant.principal).grants:
            detail = {"principal": grant.principal, "role": grant.role.value, "scope": grant.scope}
            now.append(Action.GRANT, None, detail)

    def _known(self, now: Transaction, principal: str) -> None:
        who = identify(now.connection, principal)
        if not who.known or who.revoked:
            raise ConfigError(
                f"{principal!r} is no member of this bank; enrol them first (pmemx bank enrol {principal})"
            )

    def _keep_an_owner(self, now: Transaction, leaving: str) -> None:
        rows = schema.grants
        query = select(rows.c.principal).where(
            rows.c.role == Role.OWNER.value, rows.c.scope == EVERYTHING, rows.c.until == schema.NEVER
        )
        owners = set(now.connection.execute(query).scalars())
        if owners == {leaving}:
            raise ConfigError(f"{leaving!r} is the last owner of the bank; make another one first")


def _check_principal(principal: str) -> None:
    if not _PRINCIPAL.fullmatch(principal):
        raise ConfigError(
            f"a principal is a word of letters, digits and .@+-_, got {principal!r}; choose another (for yourself with "
            "--as or PMEMX_PRINCIPAL)"
        )


def _member(now: Transaction, name: str) -> Member:
    who = identify(now.connection, name)
    return Member(name, who.guarded, who.revoked, who.grants)


def _token_of(now: Transaction, principal: str) -> str:
    """The digest of the secret that a member must show; empty where there is none, and for whoever is no member any more."""
    rows = schema.principals
    query = select(rows.c.token).where(rows.c.name == principal, rows.c.revoked == schema.NEVER)
    return now.connection.execute(query).scalar() or ""


def _name(scope: str) -> Name | None:
    """The block or namespace that a scope names, None for the bank. Raises ConfigError for what is no scope."""
    if scope == EVERYTHING:
        return None
    if "/" in scope:
        name = split_namespace(scope)
        if str(name) == scope and name.name:
            return name
    check_namespace(scope)
    return Name(scope, "")
