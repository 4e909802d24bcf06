"""Who may do what in a bank, and that a revoked principal may do nothing any more."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from pmemx.core.access import Grant, Permission, Purpose, Role
from pmemx.core.errors import AccessDenied, ConfigError, UnknownBlock
from pmemx.core.event import Action
from pmemx.store import schema
from pmemx.store.bank import Bank
from pmemx.store.collector import Collector
from pmemx.store.governed import GovernedStore, load
from pmemx.store.journal import Journal
from pmemx.store.ledger import Claimed
from pmemx.store.life import Keeping, Life
from pmemx.store.lineage import lineage
from pmemx.store.members import Member, Members
from pmemx.store.snapshots import Snapshots
from tests.store.banks import Hands, block, opened, put


@pytest.fixture
def store(tmp_path: Path) -> GovernedStore:
    """A bank of root's with blocks in three namespaces."""
    store = opened(tmp_path, Hands())
    put(store, "law")
    put(replace(store, namespace="team:legal"), "contracts")
    put(replace(store, namespace="team:legal"), "wills")
    put(replace(store, namespace="user:eve"), "diary")
    Members(store.bank).enrol("root", role=Role.OWNER)
    return store


def acting(store: GovernedStore, principal: str, token: str = "") -> GovernedStore:
    return replace(store, principal=principal, token=token)


@pytest.mark.parametrize(
    ("role", "scope", "readable"),
    [
        (Role.READER, "*", ("law", "team:legal/contracts", "team:legal/wills", "user:eve/diary")),
        (Role.READER, "shared", ("law", "user:eve/diary")),
        (Role.EDITOR, "team:legal", ("team:legal/contracts", "team:legal/wills", "user:eve/diary")),
        (Role.READER, "team:legal/wills", ("team:legal/wills", "user:eve/diary")),
        (None, "*", ("user:eve/diary",)),
    ],
)
def test_a_list_shows_what_may_be_read(store: GovernedStore, role: Role | None, scope: str, readable: tuple) -> None:
    Members(store.bank).enrol("eve", role=role, scope=scope)
    assert acting(store, "eve").names() == readable
    for name in ("law", "team:legal/contracts", "team:legal/wills", "user:eve/diary"):
        if name in readable:
            assert acting(store, "eve").get(name)
        else:
            with pytest.raises(AccessDenied):
                acting(store, "eve").get(name)


def test_a_digest_is_no_way_around_a_permission(store: GovernedStore) -> None:
    digest = store.find("team:legal/wills").digest
    Members(store.bank).enrol("eve", role=Role.READER, scope="shared")
    for reference in (digest, digest[:12], "f" * 64):
        with pytest.raises(UnknownBlock, match=f"no version begins with digest {reference}; give a name"):
            acting(store, "eve").get(reference)


def test_whoever_may_not_read_a_name_is_not_told_whether_it_exists(store: GovernedStore) -> None:
    Members(store.bank).enrol("eve")
    put(replace(store, namespace="team:legal"), "secrets", sensitivity="secret")
    eve = acting(store, "eve").bank
    asks: tuple[Callable[[str], object], ...] = (
        eve.find,
        eve.history,
        lambda name: eve.rollback(name, 1),
        lambda name: Life(eve).use(name),
        lambda name: Life(eve).archive(name),
        lambda name: Life(eve).expire(name),
    )
    for ask in asks:
        errors = []
        for name in ("team:legal/wills", "team:legal/secrets", "team:legal/nothing"):
            with pytest.raises(AccessDenied) as caught:
                ask(name)
            errors.append(str(caught.value).replace(name, "..."))
        assert len(set(errors)) == 1
    for purpose in Purpose:
        told = {
            Members(eve).decide(Permission.READ, name, purpose=purpose).reason
            for name in ("team:legal/wills", "team:legal/secrets", "team:legal/nothing")
        }
        assert len(told) == 1


EVERY_PATH: dict[str, Callable[[Bank], object]] = {
    "names": lambda bank: bank.names(),
    "find": lambda bank: bank.find("user:eve/diary"),
    "history": lambda bank: bank.history("user:eve/diary"),
    "tags": lambda bank: bank.tags("user:eve/diary"),
    "tag": lambda bank: bank.tag("user:eve/diary", "x"),
    "untag": lambda bank: bank.untag("user:eve/diary", "x"),
    "rollback": lambda bank: bank.rollback("user:eve/diary", 1),
    "manifest": lambda bank: bank.manifest("user:eve/diary"),
    "read": lambda bank: bank.read("user:eve/diary"),
    "load": lambda bank: load(bank, "user:eve/diary"),
    "put": lambda bank: GovernedStore(bank.path, namespace="user:eve", principal="eve", token="old").put(block("new")),
    "the past": lambda bank: bank.at(1).names(),
    "transaction": lambda bank: bank.transaction().__enter__(),
    "use": lambda bank: Life(bank).use("user:eve/diary"),
    "archive": lambda bank: Life(bank).archive("user:eve/diary"),
    "state": lambda bank: Life(bank).state("user:eve/diary"),
    "sweep": lambda bank: Life(bank).sweep(Keeping()),
    "snapshot": lambda bank: Snapshots(bank).take("x"),
    "snapshots": lambda bank: Snapshots(bank).list(),
    "restore": lambda bank: Snapshots(bank).restore(1),
    "collect": lambda bank: Collector(bank).collect(),
    "lineage": lambda bank: lineage(bank, "user:eve/diary"),
    "journal": lambda bank: Journal(bank).entries("user:eve/diary"),
    "head": lambda bank: Journal(bank).head(),
    "members": lambda bank: Members(bank).list(),
    "may": lambda bank: Members(bank).decide(Permission.READ),
    "grant": lambda bank: Members(bank).grant("eve", Role.OWNER, "*"),
    "id": lambda bank: bank.ledger.bank_id(),
}


@pytest.mark.parametrize("path", EVERY_PATH)
def test_a_revoked_principal_is_refused_on_every_path(store: GovernedStore, path: str) -> None:
    members = Members(store.bank)
    members.enrol("eve", token="old", role=Role.OWNER)
    eve = acting(store, "eve", "old").bank
    assert EVERY_PATH["names"](eve)
    members.revoke("eve", reason="left")
    with pytest.raises(AccessDenied, match="revoked"):
        EVERY_PATH[path](eve)
    denied = Journal(store.bank).entries(principal="eve", action=Action.DENIED)
    assert len(denied) == 1
    assert store.verify() == ()


def test_strangers_and_wrong_tokens_are_refused(store: GovernedStore) -> None:
    Members(store.bank).enrol("eve", token="secret", role=Role.OWNER)
    assert acting(store, "eve", "secret").names()
    for principal, token in (("eve", ""), ("eve", "secre"), ("bob", ""), ("bob", "secret")):
        with pytest.raises(AccessDenied):
            acting(store, principal, token).names()
    (row,) = [entry for entry in Journal(store.bank).entries(action=Action.ENROL) if entry.detail["principal"] == "eve"]
    assert "secret" not in str(row)


def test_a_principal_that_is_enrolled_again_has_no_old_roles(store: GovernedStore) -> None:
    members = Members(store.bank)
    members.enrol("eve", role=Role.OWNER)
    members.revoke("eve")
    members.enrol("eve")
    assert acting(store, "eve").names() == ("user:eve/diary",)
    assert [member.grants for member in members.list() if member.name == "eve"] == [()]


def test_a_member_who_is_enrolled_again_keeps_their_token_until_they_are_given_another(store: GovernedStore) -> None:
    members = Members(store.bank)
    members.enrol("eve", token="first", role=Role.READER)
    members.enrol("eve", role=Role.EDITOR)
    with pytest.raises(AccessDenied, match="the token is not theirs"):
        acting(store, "eve").names()
    assert acting(store, "eve", "first").names()
    members.enrol("eve", token="second")
    with pytest.raises(AccessDenied, match="the token is not theirs"):
        acting(store, "eve", "first").names()
    assert acting(store, "eve", "second").names()
    members.revoke("eve")
    members.enrol("eve", role=Role.READER)
    assert [member.guarded for member in members.list() if member.name == "eve"] == [False]
    assert acting(store, "eve").names()


def test_a_transaction_sees_what_it_did_to_its_own_members(tmp_path: Path) -> None:
    store = opened(tmp_path, Hands())
    members = Members(store.bank)
    with store.bank.transaction():
        members.enrol("root", role=Role.OWNER)
        members.enrol("bob", role=Role.READER)
    assert [member.name for member in members.list()] == ["bob", "root"]
    members.enrol("eve", role=Role.OWNER)

    def commit_after_the_own_revocation() -> None:
        with store.bank.transaction():
            members.revoke("root")
            put(store, "law")

    with pytest.raises(AccessDenied, match="revoked"):
        commit_after_the_own_revocation()
    assert store.names() == ()


def test_a_bank_that_becomes_governed_in_a_transaction_trusts_nobody_else_from_then_on(tmp_path: Path) -> None:
    store = opened(tmp_path, Hands())
    with store.bank.transaction():
        Members(store.bank).enrol("eve", role=Role.READER)
        put(store, "law")
    assert acting(store, "eve").names() == ("law",)
    with pytest.raises(AccessDenied, match="the bank does not know"):
        acting(store, "bob").names()


def test_a_principal_may_have_thousands_of_grants(tmp_path: Path) -> None:
    store = opened(tmp_path, Hands())
    for name in ("law", "tax", "wills"):
        put(store, name)
    members = Members(store.bank)
    members.enrol("root", role=Role.OWNER)
    members.enrol("eve")
    scopes = [f"shared/block {number}" for number in range(1200)] + ["shared/law", "shared/tax"]
    with store.bank.transaction() as now:
        for scope in scopes:
            now.append(Action.GRANT, None, {"principal": "eve", "role": "reader", "scope": scope})
    assert acting(store, "eve").names() == ("law", "tax")
    members.withdraw("eve", Role.READER, "shared/tax")
    assert acting(store, "eve").names() == ("law",)


def test_a_read_of_the_past_is_noted_in_the_present(store: GovernedStore) -> None:
    Members(store.bank).enrol("eve", role=Role.READER, scope="shared")
    past = acting(store, "eve").bank.at(Journal(store.bank).head()[0])
    assert past.read("law")[0].version.number == 1
    (noted,) = Journal(store.bank).entries("law", action=Action.READ)
    assert (noted.principal, noted.detail["number"]) == ("eve", 1)


def test_faults_and_secrets_are_for_those_alone_who_administer(store: GovernedStore) -> None:
    members = Members(store.bank)
    members.enrol("eve", token="secret", role=Role.EDITOR)
    with pytest.raises(AccessDenied, match="'eve' may not administer the bank"):
        acting(store, "eve", "secret").verify()
    assert store.verify() == ()
    shown = Journal(store.bank).entries(action=Action.ENROL)
    assert [entry.detail["token"] for entry in shown] == [True, False]
    # The hash is that of what is stored, and not of what is shown.
    with store.bank.ledger.reading() as now:
        rows = now.connection.execute(select(schema.journal.c.seq, schema.journal.c.hash))
        stored = {row.seq: row.hash for row in rows}
    assert {entry.seq: entry.hash for entry in shown} == {entry.seq: stored[entry.seq] for entry in shown}
    assert acting(store, "eve").bank.ledger.claimed() == Claimed(governed=True, known=True, guarded=True)


def test_a_bank_never_loses_its_last_owner(store: GovernedStore) -> None:
    members = Members(store.bank)
    for attempt in (lambda: members.revoke("root"), lambda: members.withdraw("root", Role.OWNER, "*")):
        with pytest.raises(ConfigError, match="last owner"):
            attempt()
    members.enrol("eve", role=Role.OWNER)
    members.revoke("root")
    with pytest.raises(AccessDenied):
        store.names()


def test_the_first_member_must_own_everything(tmp_path: Path) -> None:
    members = Members(opened(tmp_path, Hands()).bank)
    for role, scope in ((None, "*"), (Role.EDITOR, "*"), (Role.OWNER, "shared")):
        with pytest.raises(ConfigError, match="must own everything"):
            members.enrol("root", role=role, scope=scope)
    assert members.list() == ()


@pytest.mark.parametrize(("role", "scope"), [(Role.OWNER, "*"), (Role.READER, "team:legal"), (None, "*")])
def test_whoever_enrols_the_first_member_becomes_owner_of_everything(
    tmp_path: Path, role: Role | None, scope: str
) -> None:
    store = opened(tmp_path, Hands())
    put(store, "law")
    members = Members(store.bank)
    root = Member("root", guarded=False, revoked=False, grants=(Grant("root", Role.OWNER, "*"),))
    ada = Member("ada", guarded=True, revoked=False, grants=() if role is None else (Grant("ada", role, scope),))
    assert members.enrol("ada", token="hers", role=role, scope=scope) == (root, ada)
    assert members.list() == (ada, root)
    assert store.names() == ("law",)
    # Only the first time: the caller's role is theirs to give away afterwards.
    assert [member.name for member in members.enrol("eve", role=Role.READER)] == ["eve"]
    assert store.verify() == ()


def test_a_caller_whose_name_no_member_may_have_is_not_locked_out_but_told(tmp_path: Path) -> None:
    store = replace(opened(tmp_path, Hands()), principal="DOMAIN/ada")
    put(store, "law")
    with pytest.raises(ConfigError, match="got 'DOMAIN/ada'; choose another"):
        Members(store.bank).enrol("eve", role=Role.OWNER)
    assert Members(store.bank).list() == () and store.names() == ("law",)


def test_roles_end_when_they_are_withdrawn_and_an_owner_of_a_team_grants_there(store: GovernedStore) -> None:
    members = Members(store.bank)
    members.enrol("tess", role=Role.OWNER, scope="team:legal")
    members.enrol("eve")
    tess = Members(acting(store, "tess").bank)
    tess.grant("eve", Role.READER, "team:legal/wills")
    tess.grant("eve", Role.READER, "team:legal/wills")
    assert "team:legal/wills" in acting(store, "eve").names()
    for attempt in (
        lambda: tess.grant("eve", Role.READER, "shared"),
        lambda: tess.grant("eve", Role.READER, "*"),
        lambda: tess.enrol("zoe"),
        lambda: tess.revoke("eve"),
    ):
        with pytest.raises(AccessDenied):
            attempt()
    tess.withdraw("eve", Role.READER, "team:legal/wills")
    assert acting(store, "eve").names() == ("user:eve/diary",)
    with pytest.raises(ConfigError, match="is not reader"):
        tess.withdraw("eve", Role.READER, "team:legal/wills")


def test_a_decision_says_why_and_sensitivity_comes_first(store: GovernedStore) -> None:
    put(store, "plan", sensitivity="secret")
    put(store, "staff", sensitivity="confidential")
    members = Members(store.bank)
    members.enrol("eve", role=Role.READER, scope="shared")
    assert members.decide(Permission.READ, "law", principal="eve").reason == "reader of shared"
    assert not members.decide(Permission.WRITE, "law", principal="eve").allowed
    for purpose in (Purpose.LEAVE, Purpose.LEAVE_REDACTED):
        assert "never leaves" in members.decide(Permission.READ, "plan", purpose=purpose).reason
    assert not members.decide(Permission.READ, "staff", purpose=Purpose.LEAVE).allowed
    assert members.decide(Permission.READ, "staff", purpose=Purpose.LEAVE_REDACTED).allowed
    with pytest.raises(AccessDenied):
        Members(acting(store, "eve").bank).decide(Permission.READ, principal="root")


@pytest.mark.parametrize("scope", ["", "everything", "team:", "team:a b", "shared/", "law", "user:", "/law"])
def test_a_scope_is_the_bank_a_namespace_or_a_block(store: GovernedStore, scope: str) -> None:
    Members(store.bank).enrol("eve")
    with pytest.raises(ConfigError):
        Members(store.bank).grant("eve", Role.READER, scope)


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "a/b", "a\nb", "<script>"])
def test_a_principal_is_a_word(store: GovernedStore, name: str) -> None:
    with pytest.raises(ConfigError, match="a principal is a word"):
        Members(store.bank).enrol(name)
