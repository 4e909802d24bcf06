"""Verbs about who may do what and which tags demand what: members, may, enrol, grant, withdraw, revoke, and policies."""

import argparse
import secrets
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pmemx.cli_bank.changing import read_json
from pmemx.cli_bank.confirming import confirm
from pmemx.cli_bank.opening import open_bank, open_existing, place
from pmemx.cli_bank.printing import counted, print_json, print_line, print_table
from pmemx.cli_bank.verbs import Verbs, add_reason, add_yes
from pmemx.core.access import EVERYTHING, Permission, Purpose, Role
from pmemx.exit_codes import DONE, REFUSED

if TYPE_CHECKING:
    from pmemx.store.members import Member

SCOPE = '"*" (the whole bank), a namespace such as team:legal, or one block such as team:legal/contracts'


def add_verbs(verbs: Verbs) -> None:
    """Declare them."""
    verbs.add("members", _members, "every principal of the bank with their roles")
    asking = verbs.add("may", _may, "whether a principal may do something, and why; 3 when they may not")
    permissions = [permission.value for permission in Permission]
    asking.add_argument("permission", choices=permissions, metavar="PERMISSION", help=", ".join(permissions))
    asking.add_argument("name", nargs="?", default="", help="a block (default: the bank as a whole)")
    asking.add_argument("--principal", dest="who", default="", help="somebody else; only owners may ask about others")
    asking.add_argument(
        "--purpose",
        choices=[purpose.value for purpose in Purpose],
        default=Purpose.WITHIN.value,
        metavar="PURPOSE",
        help=f"{', '.join(Purpose)} (default: within)",
    )
    roles = [role.value for role in Role]
    enrolling = verbs.add(
        "enrol", _enrol, "make a principal known; whoever enrols the first one becomes owner of everything too"
    )
    enrolling.add_argument("who", metavar="PRINCIPAL")
    enrolling.add_argument("--role", choices=roles, metavar="ROLE", help=", ".join(roles))
    enrolling.add_argument("--scope", default=EVERYTHING, help=f"{SCOPE} (default: everything)")
    enrolling.add_argument(
        "--with-token",
        action="store_true",
        help="make a secret, print it once, and ask for it (PMEMX_TOKEN) from now on",
    )
    for name, run, sentence in (
        ("grant", _grant, "give a principal a role"),
        ("withdraw", _withdraw, "take a role away"),
    ):
        parser = verbs.add(name, run, sentence)
        parser.add_argument("who", metavar="PRINCIPAL")
        parser.add_argument("role", choices=roles, metavar="ROLE", help=", ".join(roles))
        parser.add_argument("scope", nargs="?", default=EVERYTHING, help=f"{SCOPE} (default: everything)")
    revoking = verbs.add("revoke", _revoke, "refuse a principal everything from now on")
    revoking.add_argument("who", metavar="PRINCIPAL")
    add_reason(revoking)
    add_yes(revoking, "do not ask")
    protecting = verbs.add("protect", _protect, "let only versions that meet a policy take a tag, of any block")
    protecting.add_argument("tag")
    protecting.add_argument(
        "policy",
        help='JSON file: {"bounds": [{"metric": "forgetting_general", "at_most": 0.15}]}, "-" for standard input',
    )
    verbs.add("unprotect", _unprotect, "let every version take a tag again").add_argument("tag")
    verbs.add("policies", _policies, "what every protected tag demands")


def _members(options: argparse.Namespace) -> int:
    from pmemx.store.members import Members

    found = Members(open_bank(options)).list()
    if options.json:
        print_json([_values(member) for member in found])
    elif found:
        columns = ("principal", "roles", "token", "revoked")
        rows = [(m.name, _roles(m), "asked" if m.guarded else "", "revoked" if m.revoked else "") for m in found]
        print_table(columns, rows)
    else:
        print_line(f"{place(options)} knows no principals and trusts everybody who can open it")
    return DONE


def _values(member: "Member") -> dict[str, Any]:
    return {
        "name": member.name,
        "guarded": member.guarded,
        "revoked": member.revoked,
        "grants": [{"role": grant.role.value, "scope": grant.scope} for grant in member.grants],
    }


def _roles(member: "Member") -> list[str]:
    return [f"{grant.role.value} of {grant.scope}" for grant in member.grants]


def _may(options: argparse.Namespace) -> int:
    from pmemx.store.members import Members

    members, permission, purpose = Members(open_bank(options)), Permission(options.permission), Purpose(options.purpose)
    decision = members.decide(permission, options.name, principal=options.who, purpose=purpose)
    request = decision.request
    if options.json:
        asked = {"principal": request.principal, "permission": request.permission, "subject": request.subject}
        print_json({"allowed": decision.allowed, "reason": decision.reason, **asked, "purpose": request.purpose})
    else:
        word = "may" if decision.allowed else "may not"
        print_line(f"{request.principal} {word} {request.permission} {request.subject}: {decision.reason}")
    return DONE if decision.allowed else REFUSED


def _enrol(options: argparse.Namespace) -> int:
    from pmemx.store.members import Members

    token = secrets.token_urlsafe(32) if options.with_token else ""
    role = Role(options.role) if options.role else None
    made = Members(open_bank(options)).enrol(options.who, token=token, role=role, scope=options.scope)
    if options.json:
        print_json({"principal": options.who, "token": token or None, "members": [_values(one) for one in made]})
        return DONE
    for one in made:
        print_line(f"{one.name} is a member: {', '.join(_roles(one)) or 'without a role'}")
    if len(made) > 1:
        print_line(
            f"the bank had no members; {made[0].name} is one because they enrolled the first, and all others are refused"
        )
    if token:
        print_line(f"{options.who} shows this secret in PMEMX_TOKEN: {token}")
    return DONE


def _grant(options: argparse.Namespace) -> int:
    from pmemx.store.members import Members

    Members(open_existing(options)).grant(options.who, Role(options.role), options.scope)
    return _tell_role(options, "is")


def _withdraw(options: argparse.Namespace) -> int:
    from pmemx.store.members import Members

    Members(open_existing(options)).withdraw(options.who, Role(options.role), options.scope)
    return _tell_role(options, "is no longer")


def _tell_role(options: argparse.Namespace, what: str) -> int:
    if options.json:
        print_json({"principal": options.who, "role": options.role, "scope": options.scope})
    else:
        print_line(f"{options.who} {what} {options.role} of {options.scope}")
    return DONE


def _revoke(options: argparse.Namespace) -> int:
    from pmemx.store.members import Members

    bank = open_existing(options)
    if not confirm(options, f"Refuse {options.who} everything from now on, and end their roles?"):
        return REFUSED
    Members(bank).revoke(options.who, reason=options.reason)
    if options.json:
        print_json({"revoked": options.who})
    else:
        print_line(f"{options.who} is revoked")
    return DONE


def _protect(options: argparse.Namespace) -> int:
    from pmemx.core.tag_policy import policy_from
    from pmemx.store.evaluations import Evaluations

    bank, policy = open_existing(options), policy_from(read_json(options.policy))
    Evaluations(bank).protect(options.tag, policy)
    if options.json:
        print_json({"tag": options.tag, "bounds": [asdict(bound) for bound in policy.bounds]})
    else:
        print_line(f"tag {options.tag} is protected by {counted(len(policy.bounds), 'bound')}")
    return DONE


def _unprotect(options: argparse.Namespace) -> int:
    from pmemx.store.evaluations import Evaluations

    Evaluations(open_existing(options)).unprotect(options.tag)
    if options.json:
        print_json({"unprotected": options.tag})
    else:
        print_line(f"tag {options.tag} is open to every version")
    return DONE


def _policies(options: argparse.Namespace) -> int:
    from pmemx.store.evaluations import Evaluations

    found = Evaluations(open_bank(options)).policies()
    if options.json:
        print_json({tag: {"bounds": [asdict(bound) for bound in policy.bounds]} for tag, policy in found.items()})
    elif found:
        rows = [
            (tag, b.metric, b.at_least, b.at_most, b.judged, "yes" if b.relative else "")
            for tag, policy in found.items()
            for b in policy.bounds
        ]
        print_table(("tag", "metric", "at least", "at most", "judged by", "relative"), rows)
    else:
        print_line(f"{place(options)} protects no tag")
    return DONE
