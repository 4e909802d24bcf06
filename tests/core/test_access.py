"""A decision is a function of who asks, for what, and what for: a table of cases, then laws over all of them."""

import itertools

import pytest

from pmemx.core.access import PERMISSIONS, Decision, Grant, Permission, Purpose, Request, Role, decide
from pmemx.core.card import Sensitivity
from pmemx.core.errors import AccessDenied

READ, WRITE, DELETE, EXECUTE, ADMINISTER = Permission
CONTRACTS = ("team:legal", "contracts")
OWN = ("user:ann", "diary")
OTHERS = ("user:bob", "diary")
BANK = ("", "")
NAMESPACE = ("team:legal", "")

# What ann may do by the role and the scope of her one grant, on which block. "-": she has no grant.
CASES = [
    ("reader", "*", CONTRACTS, {READ}),
    ("runner", "*", CONTRACTS, {READ, EXECUTE}),
    ("editor", "*", CONTRACTS, {READ, EXECUTE, WRITE}),
    ("owner", "*", CONTRACTS, {READ, EXECUTE, WRITE, DELETE, ADMINISTER}),
    ("owner", "*", BANK, set(Permission)),
    ("owner", "*", OTHERS, set(Permission)),
    ("owner", "team:legal", CONTRACTS, set(Permission)),
    ("owner", "team:legal", NAMESPACE, set(Permission)),
    ("owner", "team:legal", BANK, set()),
    ("owner", "team:legal", ("team:law", "contracts"), set()),
    ("owner", "team:legal", ("team:legally", "contracts"), set()),
    ("owner", "team:legal", ("shared", "team:legal"), set()),
    ("editor", "team:legal/contracts", CONTRACTS, {READ, EXECUTE, WRITE}),
    ("editor", "team:legal/contracts", ("team:legal", "contracts 2"), set()),
    ("editor", "team:legal/contracts", NAMESPACE, set()),
    ("editor", "shared/contracts", CONTRACTS, set()),
    ("-", "", CONTRACTS, set()),
    ("-", "", BANK, set()),
    ("-", "", OWN, set(Permission)),
    ("-", "", ("user:ann", ""), set(Permission)),
    ("-", "", OTHERS, set()),
    ("-", "", ("user:anna", "diary"), set()),
    ("-", "", ("shared", "user:ann"), set()),
    ("reader", "user:bob/diary", OTHERS, {READ}),
    ("reader", "user:ann", OWN, set(Permission)),  # a smaller role does not take from what is her own
]


@pytest.mark.parametrize(("role", "scope", "block", "allowed"), CASES)
def test_what_a_role_on_a_scope_allows(role: str, scope: str, block: tuple[str, str], allowed: set[Permission]) -> None:
    grants = () if role == "-" else (Grant("ann", Role(role), scope),)
    assert {p for p in Permission if decide(Request("ann", p, *block), grants, governed=True).allowed} == allowed


def test_a_grant_is_for_the_principal_it_names() -> None:
    grants = [Grant("bob", Role.OWNER, "*")]
    assert not decide(Request("ann", READ, *CONTRACTS), grants, governed=True).allowed
    assert decide(Request("bob", READ, *CONTRACTS), grants, governed=True).allowed


def test_the_widest_of_several_grants_counts() -> None:
    grants = [Grant("ann", Role.READER, "*"), Grant("ann", Role.EDITOR, "team:legal"), Grant("bob", Role.OWNER, "*")]
    assert decide(Request("ann", WRITE, *CONTRACTS), grants, governed=True).reason == "editor of team:legal"
    assert not decide(Request("ann", WRITE, "shared", "law"), grants, governed=True).allowed
    assert decide(Request("ann", READ, "shared", "law"), grants, governed=True).reason == "reader of *"


# Whether a block may be copied out, by its sensitivity, in a bank where the principal owns everything.
LEAVING = {
    ("public", "leave"): True,
    ("public", "leave_redacted"): True,
    ("internal", "leave"): True,
    ("internal", "leave_redacted"): True,
    ("confidential", "leave"): False,
    ("confidential", "leave_redacted"): True,
    ("secret", "leave"): False,
    ("secret", "leave_redacted"): False,
}


@pytest.mark.parametrize("governed", [True, False])
@pytest.mark.parametrize("block", [CONTRACTS, OWN])
@pytest.mark.parametrize(("sensitivity", "purpose"), LEAVING)
def test_no_role_lets_a_sensitive_block_leave(
    sensitivity: str, purpose: str, block: tuple[str, str], governed: bool
) -> None:
    grants = [Grant("ann", Role.OWNER, "*")]
    request = Request("ann", READ, *block, Purpose(purpose), sensitivity)
    decision = decide(request, grants, governed=governed)
    assert decision.allowed == LEAVING[sensitivity, purpose]
    if not decision.allowed:
        assert f"it is {sensitivity}" in decision.reason
    inside = Request("ann", READ, *block, Purpose.WITHIN, sensitivity)
    assert decide(inside, grants, governed=governed).allowed


def test_sensitivity_is_asked_before_permission() -> None:
    request = Request("ann", READ, *CONTRACTS, Purpose.LEAVE, Sensitivity.SECRET.value)
    assert decide(request, (), governed=True).reason.startswith("it is secret")


ALL = list(itertools.product(Permission, (CONTRACTS, OWN, OTHERS, BANK), Purpose, Sensitivity, (None, *Role)))


def requests() -> list[tuple[Request, tuple[Grant, ...]]]:
    return [
        (Request("ann", permission, *block, purpose, sensitivity.value), (Grant("ann", role, "*"),) if role else ())
        for permission, block, purpose, sensitivity, role in ALL
    ]


def test_a_revoked_principal_may_do_nothing_not_even_in_an_ungoverned_bank() -> None:
    assert len(ALL) == 1200
    for request, grants in requests():
        for governed in (True, False):
            decision = decide(request, grants, governed=governed, revoked=True)
            assert (decision.allowed, "revoked" in decision.reason) == (False, True)


def test_a_bank_that_knows_no_principal_trusts_everybody_with_all_that_may_leave() -> None:
    for request, grants in requests():
        kept = LEAVING.get((request.sensitivity, request.purpose.value), True)
        assert decide(request, grants, governed=False).allowed == kept


def test_a_grant_more_never_takes_a_permission_away() -> None:
    for request, grants in requests():
        if decide(request, grants, governed=True).allowed:
            for role in Role:
                assert decide(request, (Grant("ann", role, "team:legal"), *grants), governed=True).allowed


def test_roles_are_nested() -> None:
    reader, runner, editor, owner = (PERMISSIONS[role] for role in Role)
    assert reader < runner < editor < owner == set(Permission)


def test_a_refusal_names_who_what_where_and_the_remedy() -> None:
    refused = decide(Request("ann", WRITE, *CONTRACTS), (), governed=True)
    with pytest.raises(AccessDenied, match=r"'ann' may not write team:legal/contracts: .* \(pmemx bank grant ann"):
        refused.enforce()
    with pytest.raises(AccessDenied, match="may not administer the bank"):
        decide(Request("ann", ADMINISTER), (), governed=True).enforce()
    Decision(True, refused.request, "because").enforce()
