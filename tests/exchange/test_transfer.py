"""Copies between banks: equal digests, fast-forward only, all or nothing, and no way around the gate."""

import multiprocessing
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmemx.core.access import Role
from pmemx.core.card import BlockCard, Sensitivity
from pmemx.core.errors import (
    AccessDenied,
    ConfigError,
    CorruptBlock,
    Diverged,
    IllegalTransition,
    IncompatibleBlock,
    PmemxError,
    PolicyRefused,
    StorageError,
    UnknownBlock,
)
from pmemx.core.event import Action, Event
from pmemx.core.metric import Figure
from pmemx.core.objects import Objects
from pmemx.core.tag_policy import Bound, TagPolicy
from pmemx.exchange.transfer import copy
from pmemx.store import catalogue
from pmemx.store.bank import Bank
from pmemx.store.engine import writing
from pmemx.store.evaluations import Evaluations
from pmemx.store.governed import GovernedStore
from pmemx.store.journal import Journal
from pmemx.store.leaving import leave
from pmemx.store.ledger import Transaction
from pmemx.store.life import Life
from pmemx.store.local_objects import LocalObjects
from pmemx.store.members import Members
from pmemx.store.references import Name
from tests.exchange.banks import BASE, SECRETS, SIGNS, block, snapshot, store

CONFIDENTIAL, SECRET = Sensitivity.CONFIDENTIAL.value, Sensitivity.SECRET.value


@pytest.fixture
def here(tmp_path: Path) -> GovernedStore:
    return store(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> GovernedStore:
    return store(tmp_path / "there")


def digests(one: GovernedStore | Bank, name: str = "law") -> list[str]:
    return [version.digest for version in one.history(name)]


def told(bank: Bank, action: Action) -> list[Event]:
    return list(reversed(Journal(bank).entries(action=action, limit=1000)))


def record(bank: Bank, reference: str, **figures: Figure) -> None:
    """What an evaluation notes."""
    with bank.ledger.writing() as now:
        found = catalogue.resolve(now, reference)
        scores = {metric: vars(figure) for metric, figure in figures.items()}
        detail = {"number": found.version.number, "scores": scores, "report": "/home/alice/report.html"}
        now.append(Action.EVALUATE, found.full, detail)


def scores(bank: Bank, reference: str) -> dict[str, Figure]:
    with bank.ledger.reading() as now:
        found = catalogue.resolve(now, reference)
        return catalogue.scores(now, found.block, found.version.number)


def messages(bank: Bank, name: str) -> list[str]:
    with bank.ledger.reading() as now:
        return [found.message for found in catalogue.history(now, bank.full(name))]


def three_versions(one: GovernedStore, **card: object) -> None:
    for number, fill in enumerate((1.0, 2.0, 3.0), 1):
        one.put(block(fill=fill, **card), message=f"change {number}")


# ------------------------------------------------------------------------------------------------------- what is copied


def test_eight_blocks_of_mixed_rank_arrive_byte_for_byte(here: GovernedStore, there: GovernedStore) -> None:
    ranks = [(1,), (2, 3), (8,), (16, 4), (5, 5, 5), (32,), (1, 64), (7, 2, 9)]
    for number, each in enumerate(ranks):
        name = f"expert {number}"
        here.put(block(name, 1.0, each), message="first")
        here.put(block(name, 2.0, each[::-1], parents=(here.find(name).digest,)), message="second")
        here.rollback(name, 1, message="back")
        here.tag(f"{name}@2", "prod")
    for name in here.names():
        made = copy(here.bank, there.bank, name, tags=None)
        assert made.added == tuple(digests(here, name))
        assert made.version == here.find(name)
    assert there.names() == here.names()
    for name in here.names():
        assert there.history(name) == here.history(name)
        assert [version.restores for version in there.history(name)] == [None, None, 1]
        assert there.tags(name) == {"prod": 2}
        assert messages(there.bank, name) == ["first", "second", "back"]
        for site, factors in here.get(name).factors.items():
            assert torch.equal(there.get(name).factors[site].B, factors.B)
    objects = {path: data for path, data in snapshot(here.path).items() if path.startswith("blobs")}
    assert objects == {path: data for path, data in snapshot(there.path).items() if path.startswith("blobs")}
    assert (here.verify(), there.verify()) == ((), ())


def test_a_second_copy_adds_nothing_to_either_journal(here: GovernedStore, there: GovernedStore) -> None:
    three_versions(here)
    record(here.bank, "law@2", exact=Figure(0.5, 0.4, 0.6, 100, 20))
    here.tag("law@2", "prod")
    assert copy(here.bank, there.bank, "law", tags=None).changed
    heads = Journal(here.bank).head(), Journal(there.bank).head()
    again = copy(here.bank, there.bank, "law", tags=None)
    assert not again.changed
    assert again.version == there.find("law@3")
    assert (Journal(here.bank).head(), Journal(there.bank).head()) == heads


def test_only_what_is_new_is_added(here: GovernedStore, there: GovernedStore) -> None:
    three_versions(here)
    copy(here.bank, there.bank, "law@1")
    assert digests(there) == digests(here)[:1]
    made = copy(here.bank, there.bank, "law")
    assert made.added == tuple(digests(here)[1:])
    assert [entry.detail["digests"] for entry in told(here.bank, Action.EXPORT)] == [
        digests(here)[:1],
        digests(here)[1:],
    ]
    assert digests(there) == digests(here)


def test_both_journals_tell_what_went_from_where_to_where(here: GovernedStore, there: GovernedStore) -> None:
    three_versions(here)
    head = Journal(here.bank).head()
    copy(here.bank, there.bank, "law", into=Name("team:legal", "contracts"))
    (left,) = told(here.bank, Action.EXPORT)
    assert (left.namespace, left.name, left.principal) == ("shared", "law", "tester")
    assert left.detail["digests"] == digests(here)
    assert (left.detail["to"], left.detail["name"]) == (str(there.path), "team:legal/contracts")
    (came,) = told(there.bank, Action.PULL)
    assert (came.namespace, came.name) == ("team:legal", "contracts")
    assert came.detail["digests"] == digests(here)
    origin = came.detail["from"]
    assert (origin["bank"], origin["name"], origin["number"]) == (here.bank.ledger.bank_id(), "shared/law", 3)
    assert (origin["seq"], origin["hash"]) == head


def test_the_note_of_an_export_has_no_password(here: GovernedStore, tmp_path: Path) -> None:
    here.put(block())
    bucket = Bank("memory://key:hush@bucket/one", database=str(tmp_path / "ledger.db"), principal="tester")
    copy(here.bank, bucket, "law")
    assert [entry.detail["to"] for entry in told(here.bank, Action.EXPORT)] == ["memory://key:***@bucket/one"]
    assert [version.digest for version in bucket.history("law")] == digests(here)


def test_tags_come_along_where_they_are_asked_for(here: GovernedStore, there: GovernedStore) -> None:
    three_versions(here)
    for number, tag in ((1, "old"), (2, "prod"), (3, "next")):
        here.tag(f"law@{number}", tag)
    copy(here.bank, there.bank, "law@2")
    assert there.tags("law") == {}
    assert copy(here.bank, there.bank, "law@2", tags=("old",)).tags == {"old": 1}
    assert copy(here.bank, there.bank, "law@2", tags=None).tags == {"prod": 2}
    assert there.tags("law") == {"old": 1, "prod": 2}
    with pytest.raises(UnknownBlock, match="past version 2 that is copied"):
        copy(here.bank, there.bank, "law@2", tags=("next",))
    with pytest.raises(UnknownBlock, match="its tags: next, old, prod"):
        copy(here.bank, there.bank, "law@2", tags=("best",))


def test_scores_are_told_once_however_often_and_by_whatever_way_they_come(tmp_path: Path) -> None:
    one, two, three = (store(tmp_path / name) for name in "123")
    one.put(block())
    figure = Figure(0.75, 0.5, 0.875, 40, 8, 0.25, 1.0)
    record(one.bank, "law", exact=figure)
    record(one.bank, "law", kl=Figure(0.5))
    assert copy(one.bank, two.bank, "law").scores == 2
    record(two.bank, "law", exact=Figure(0.5, n=10))
    assert copy(two.bank, three.bank, "law").scores == 3
    assert copy(one.bank, three.bank, "law").scores == 0
    assert copy(three.bank, one.bank, "law").scores == 1
    assert copy(three.bank, two.bank, "law").scores == 0
    assert scores(two.bank, "law") == scores(three.bank, "law") == {"exact": Figure(0.5, n=10), "kl": Figure(0.5)}


def test_scores_from_elsewhere_bind_a_protected_tag(here: GovernedStore, there: GovernedStore) -> None:
    three_versions(here)
    record(here.bank, "law@1", exact=Figure(0.9))
    here.tag("law@1", "prod")
    Evaluations(there.bank).protect("prod", TagPolicy(bounds=(Bound(metric="exact", at_least=0.5, judged="value"),)))
    copy(here.bank, there.bank, "law", tags=("prod",))
    assert there.tags("law") == {"prod": 1}
    here.tag("law@2", "prod")
    head = Journal(there.bank).head()[0]
    with pytest.raises(PolicyRefused, match="may not take the protected tag 'prod'"):
        copy(here.bank, there.bank, "law", tags=("prod",))
    assert [entry.action for entry in Journal(there.bank).entries() if entry.seq > head] == ["refused"]
    record(here.bank, "law@2", exact=Figure(0.75))
    copy(here.bank, there.bank, "law", tags=("prod",))
    assert there.tags("law") == {"prod": 2}
    record(here.bank, "law@2", exact=Figure(0.25))
    copy(here.bank, there.bank, "law")
    assert there.tags("law") == {"prod": 1}
    assert there.verify() == ()


def test_a_signature_comes_along_and_still_holds(here: GovernedStore, there: GovernedStore, tmp_path: Path) -> None:
    pytest.importorskip("model_signing", reason="the extra `sign` is not installed")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from pmemx.store.signing import Signing

    key = ec.generate_private_key(ec.SECP256R1())
    private, public = tmp_path / "key.pem", tmp_path / "pub.pem"
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    private.write_bytes(key.private_bytes(*plain))
    subject = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, subject))
    three_versions(here)
    signed = Signing(here.bank).sign("law@2", private, public)
    assert copy(here.bank, there.bank, "law").signatures == 1
    assert Signing(there.bank).keys("law@2") == (signed,)
    Signing(there.bank).verify("law@2", public)
    assert copy(here.bank, there.bank, "law", into=Name("shared", "masked"), redacted=True).signatures == 0
    assert there.verify() == ()


def test_principals_and_grants_stay_in_their_bank(here: GovernedStore, there: GovernedStore) -> None:
    Members(here.bank).enrol("tester", token="hush", role=Role.OWNER)
    opened = replace(here.bank, token="hush")
    GovernedStore(here.path, principal="tester", token="hush").put(block())
    copy(opened, there.bank, "law")
    assert Members(there.bank).list() == ()
    assert "hush" not in repr(snapshot(there.path)["bank.db"])


def test_a_version_that_an_older_pmemx_wrote_keeps_its_digest(here: GovernedStore, there: GovernedStore) -> None:
    import hashlib
    import json

    from pmemx.store import changes
    from pmemx.store.block_bytes import encode
    from pmemx.store.manifest import Manifest

    manifest, weights = encode(block())
    value = json.loads(manifest.encode())
    value["format"], value["card"]["extra"] = 1, {"kept": "so"}
    old = json.dumps(value).encode()
    here.bank.objects.put(weights)
    digest = here.bank.objects.put(old)
    assert digest == hashlib.sha256(old).hexdigest() != Manifest.decode(old).digest
    with here.bank.ledger.writing() as now:
        changes.commit(now, Name("shared", "law"), Manifest.decode(old), digest=digest)
    here.put(block(fill=2.0))
    here.rollback("law", 1)
    copy(here.bank, there.bank, "law")
    assert digests(there) == digests(here) == [digest, here.find("law@2").digest, digest]
    assert there.get("law").card.extra == {"kept": "so"}
    assert (here.verify(), there.verify()) == ((), ())


def test_a_copy_does_not_outlive_its_original(tmp_path: Path) -> None:
    time = datetime(2027, 1, 1, tzinfo=UTC)
    now = [time]
    one, two, three = (GovernedStore(tmp_path / name, principal="tester", clock=lambda: now[0]) for name in "123")
    one.put(block(ttl=100.0))
    now[0] += timedelta(seconds=60)
    copy(one.bank, two.bank, "law")
    assert two.names() == ("law",)
    assert two.verify() == ()
    now[0] += timedelta(seconds=41)
    assert one.names() == two.names() == ()
    with pytest.raises(IllegalTransition, match=r"past its TTL since 2027-01-01T00:01:40"):
        copy(two.bank, three.bank, "law")
    with pytest.raises(IllegalTransition, match="past its TTL"):
        leave(one.bank, ["law"])
    assert not (tmp_path / "3").exists()


# --------------------------------------------------------------------------------------------------------- to and fro


def test_two_banks_pull_from_each_other_to_and_fro(here: GovernedStore, there: GovernedStore) -> None:
    one, other = here, there
    for fill in range(6):
        one.put(block(fill=float(fill)))
        assert len(copy(one.bank, other.bank, "law").added) == 1
        assert not copy(other.bank, one.bank, "law").changed
        one, other = other, one
    assert digests(here) == digests(there)
    assert len(digests(here)) == 6


def test_histories_that_differ_are_refused_with_the_first_difference(here: GovernedStore, there: GovernedStore) -> None:
    here.put(block(fill=1.0))
    copy(here.bank, there.bank, "law")
    here.put(block(fill=2.0))
    there.put(block(fill=3.0))
    before = snapshot(there.path), Journal(here.bank).head()
    mine, theirs = digests(there)[1][:12], digests(here)[1][:12]
    with pytest.raises(Diverged, match=f"holds {mine} as version 2, .* has {theirs} there; take it in under another"):
        copy(here.bank, there.bank, "law")
    assert (snapshot(there.path), Journal(here.bank).head()) == before
    copy(here.bank, there.bank, "law", into=Name("team:legal", "law"))
    assert digests(there, "team:legal/law") == digests(here)
    assert not copy(here.bank, there.bank, "law@1").changed  # up to there they agree


def test_a_redacted_history_and_a_whole_one_are_told_apart(here: GovernedStore, there: GovernedStore) -> None:
    here.put(block())
    copy(here.bank, there.bank, "law", redacted=True)
    with pytest.raises(Diverged, match="of which the former is the redacted form"):
        copy(here.bank, there.bank, "law")
    copy(here.bank, there.bank, "law", into=Name("shared", "whole"))
    with pytest.raises(Diverged, match="which is the same redacted"):
        copy(here.bank, there.bank, "law", into=Name("shared", "whole"), redacted=True)


@given(st.lists(st.tuples(st.sampled_from(["put", "pull"]), st.booleans(), st.integers(0, 3)), max_size=10))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_of_changes_and_pulls_ends_as_prefixes_say(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, bool, int]]
) -> None:
    folder = tmp_path_factory.mktemp("banks")
    banks = [store(folder / "0"), store(folder / "1")]
    model: list[list[int]] = [[], []]
    for verb, first, fill in steps:
        one, other = (0, 1) if first else (1, 0)
        if verb == "put":
            banks[one].put(block(fill=float(fill)))
            model[one] += [] if model[one][-1:] == [fill] else [fill]
        elif not model[other]:
            with pytest.raises(UnknownBlock):
                copy(banks[other].bank, banks[one].bank, "law")
        elif all(a == b for a, b in zip(model[one], model[other], strict=False)):
            made = copy(banks[other].bank, banks[one].bank, "law")
            assert len(made.added) == max(0, len(model[other]) - len(model[one]))
            model[one] = list(max(model[one], model[other], key=len))
        else:
            with pytest.raises(Diverged):
                copy(banks[other].bank, banks[one].bank, "law")
    for bank, fills in zip(banks, model, strict=True):
        found = [bank.get(f"law@{number}") for number in range(1, len(fills) + 1)]
        assert [-one.factors["model.layers.0.self_attn.q_proj"].B[0, 0].item() for one in found] == fills
        assert bank.verify() == ()


# ------------------------------------------------------------------------------------------------------ namespaces, names


def test_a_private_block_becomes_a_shared_one_and_the_private_one_stays(here: GovernedStore) -> None:
    private = store(here.path, namespace="user:alice")
    three_versions(private, sensitivity=SECRET)
    made = copy(here.bank, here.bank, "user:alice/law", into=Name("shared", "law"))
    assert made.version.namespace == "shared"
    assert digests(here, "law") == digests(here, "user:alice/law")
    assert here.names() == ("law", "user:alice/law")
    assert told(here.bank, Action.EXPORT) == []  # nothing left the bank
    assert here.verify() == ()


def test_by_default_a_block_keeps_its_name_in_the_target_s_own_namespace(here: GovernedStore, tmp_path: Path) -> None:
    store(here.path, namespace="team:legal").put(block())
    mine = Bank(tmp_path / "there", principal="bob", namespace="user:bob")
    assert copy(here.bank, mine, "team:legal/law").version.namespace == "user:bob"
    assert len(mine.history("user:bob/law")) == 1


def test_a_block_is_not_copied_onto_itself_by_whatever_path(here: GovernedStore) -> None:
    here.put(block())
    roundabout = Bank(f"{here.path}/../{here.path.name}", principal="tester")
    with pytest.raises(ConfigError, match="copied onto itself"):
        copy(here.bank, roundabout, "law")


@pytest.mark.parametrize("into", [Name("office", "law"), Name("shared", " "), Name("shared", "team:legal/law")])
def test_a_name_that_no_bank_takes_is_refused_before_anything_leaves(
    here: GovernedStore, there: GovernedStore, into: Name
) -> None:
    here.put(block())
    head = Journal(here.bank).head()
    with pytest.raises(ConfigError):
        copy(here.bank, there.bank, "law", into=into)
    assert Journal(here.bank).head() == head
    assert not there.path.exists()


def test_a_block_of_another_base_is_refused_where_a_base_is_asked_for(
    here: GovernedStore, there: GovernedStore
) -> None:
    here.put(block())
    with pytest.raises(
        IncompatibleBlock, match=r"shared/law@1 was made on base bbbbbbbbbbbb \(owner/tiny\), not on cccc"
    ):
        copy(here.bank, there.bank, "law", base="c" * 64)
    assert not there.path.exists()
    assert copy(here.bank, there.bank, "law", base=BASE).changed


# ----------------------------------------------------------------------------------------------------------- permissions


def test_reading_in_the_source_and_writing_in_the_target_are_asked(here: GovernedStore, there: GovernedStore) -> None:
    here.put(block())
    for bank in (here.bank, there.bank):
        Members(bank).enrol("tester", role=Role.OWNER)
        Members(bank).enrol("bob")
    source, target = replace(here.bank, principal="bob"), replace(there.bank, principal="bob")
    with pytest.raises(AccessDenied, match="'bob' may not read shared/law"):
        copy(source, target, "law")
    Members(here.bank).grant("bob", Role.READER, "shared/law")
    with pytest.raises(AccessDenied, match="'bob' may not write shared/law"):
        copy(source, target, "law")
    assert told(here.bank, Action.EXPORT) == []
    assert snapshot(there.path).keys() == {"bank.db"}
    assert copy(source, target, "law", into=Name("user:bob", "law")).changed
    assert len(told(here.bank, Action.DENIED)) == len(told(there.bank, Action.DENIED)) == 1


Way = Callable[[GovernedStore, GovernedStore, str, bool], object]


def _copied(here: GovernedStore, there: GovernedStore, reference: str, redacted: bool) -> object:
    return copy(here.bank, there.bank, reference, redacted=redacted)


def _as_files(here: GovernedStore, there: GovernedStore, reference: str, redacted: bool) -> object:
    return leave(here.bank, [reference], redacted=redacted)


def _to_the_hub(here: GovernedStore, there: GovernedStore, reference: str, redacted: bool) -> object:
    from pmemx.exchange.hub import write_hub_folder

    return write_hub_folder(here.bank, [reference], Path(there.path), repo_id="owner/name", redacted=redacted)


WAYS = pytest.mark.parametrize("way", [_copied, _as_files, _to_the_hub])


@WAYS
@pytest.mark.parametrize("governed", [False, True])
def test_a_secret_block_leaves_by_no_way_whoever_asks(
    here: GovernedStore, there: GovernedStore, way: Way, governed: bool
) -> None:
    here.put(block(sensitivity=SECRET))
    if governed:
        Members(here.bank).enrol("tester", role=Role.OWNER)
    for redacted in (False, True):
        with pytest.raises(AccessDenied, match="secret and never leaves"):
            way(here, there, "law", redacted)
    assert told(here.bank, Action.EXPORT) == []
    assert not [path for path in snapshot(there.path) if "blobs" in path or "safetensors" in path]


@pytest.mark.parametrize("cold", ["", "cold"])
def test_a_secret_block_does_not_leave_into_another_folder_beside_the_same_ledger(
    here: GovernedStore, tmp_path: Path, cold: str
) -> None:
    here.put(block(sensitivity=SECRET))
    Members(here.bank).enrol("tester", role=Role.OWNER)
    Members(here.bank).enrol("bob", role=Role.READER, scope="shared")
    bob = replace(here.bank, principal="bob")
    settings = {"database": str(here.path / "bank.db"), "namespace": "user:bob", "principal": "bob"}
    outside = Bank(tmp_path / "out", cold=cold and str(tmp_path / cold), **settings)
    with pytest.raises(AccessDenied, match="secret and never leaves"):
        copy(bob, outside, "shared/law")
    if cold:
        with pytest.raises(AccessDenied, match="secret and never leaves"):
            copy(bob, Bank(here.path, cold=str(tmp_path / cold), **settings), "shared/law")
    assert not (tmp_path / "out").exists()
    inside = Bank(f"{here.path}/../here", **settings)
    assert copy(bob, inside, "shared/law").version.namespace == "user:bob"
    assert told(here.bank, Action.EXPORT) == []


@WAYS
def test_a_confidential_block_leaves_by_every_way_but_only_redacted(
    here: GovernedStore, there: GovernedStore, way: Way
) -> None:
    for fill in (1.0, 2.0):
        here.put(block(fill=fill, sensitivity=CONFIDENTIAL, **SECRETS), message="asked for by alice, see ZEN-1")
    record(here.bank, "law", exact=Figure(0.5))
    with pytest.raises(AccessDenied, match="leaves the bank only redacted"):
        way(here, there, "law", False)
    assert not there.path.exists()
    way(here, there, "law", True)
    assert len(told(here.bank, Action.EXPORT)) == 1
    assert told(here.bank, Action.EXPORT)[0].detail["redacted"] is True
    for path, data in snapshot(there.path).items():
        assert not [sign for sign in SIGNS if sign.encode() in data], path


def test_a_redacted_copy_says_so_and_names_the_original(here: GovernedStore, there: GovernedStore) -> None:
    three_versions(here, sensitivity=CONFIDENTIAL, **SECRETS)
    copy(here.bank, there.bank, "law", redacted=True)
    assert there.verify() == ()
    assert messages(there.bank, "law") == ["redacted"] * 3
    assert not set(digests(there)) & set(digests(here))
    for version, original in zip(there.history("law"), digests(here), strict=True):
        assert version.card.extra["redacted"]["original"] == original
        assert version.card.sensitivity == CONFIDENTIAL
    for site, factors in here.get("law").factors.items():
        assert torch.equal(there.get("law").factors[site].A, factors.A)


def test_a_redacted_copy_tells_no_namespace(here: GovernedStore, there: GovernedStore) -> None:
    mine = replace(here, namespace="user:alice-smith")
    three_versions(mine, sensitivity=CONFIDENTIAL)
    mine.tag("law", "prod")
    copy(mine.bank, there.bank, "law", tags=None, redacted=True)
    assert told(there.bank, Action.PULL)[0].detail["from"]["name"] == "law"
    assert told(there.bank, Action.TAG)[0].detail["reason"] == "copied from law"
    assert not [path for path, data in snapshot(there.path).items() if b"alice-smith" in data]


def test_what_is_redacted_already_travels_on_under_the_same_digest(tmp_path: Path) -> None:
    one, two, three = (store(tmp_path / name) for name in "123")
    three_versions(one, sensitivity=CONFIDENTIAL, **SECRETS)
    copy(one.bank, two.bank, "law", redacted=True)
    copy(two.bank, three.bank, "law")
    assert digests(two) == digests(three)
    assert not copy(one.bank, three.bank, "law", redacted=True).changed
    two.rollback("law", 1, message="alice said so")
    copy(two.bank, three.bank, "law")
    assert messages(three.bank, "law") == ["redacted"] * 4


def test_a_secret_version_in_the_history_keeps_later_ones_in(here: GovernedStore, there: GovernedStore) -> None:
    here.put(block(fill=1.0))
    here.put(block(fill=2.0, sensitivity=SECRET))
    here.put(block(fill=3.0))
    with pytest.raises(
        AccessDenied, match=r"law@3 out .* version 2 may not leave: it is secret .* put version 3 under another"
    ):
        copy(here.bank, there.bank, "law")
    assert copy(here.bank, there.bank, "law@1").added == (digests(here)[0],)
    assert len(leave(here.bank, ["law"])) == 1  # a folder has no history


def test_what_is_public_in_the_ledger_and_secret_in_the_manifest_stays(
    here: GovernedStore, there: GovernedStore
) -> None:
    here.put(block(sensitivity=SECRET))
    with sqlite3.connect(here.path / "bank.db") as connection:
        connection.execute(
            "UPDATE versions SET sensitivity = 'public', card = replace(card, '\"secret\"', '\"public\"')"
        )
    connection.close()
    for way in (lambda: copy(here.bank, there.bank, "law"), lambda: leave(here.bank, ["law"])):
        with pytest.raises(CorruptBlock, match="another card"):
            way()
    assert not there.path.exists()


def test_files_leave_together_or_not_at_all(here: GovernedStore) -> None:
    here.put(block("open"))
    here.put(block("closed", sensitivity=CONFIDENTIAL))
    with pytest.raises(AccessDenied):
        leave(here.bank, ["open", "closed"])
    assert told(here.bank, Action.EXPORT) == []
    left = leave(here.bank, ["open", "closed"], redacted=True, to="/mnt/usb")
    assert [one.block.card.name for one in left] == ["open", "closed"]
    assert [(one.name, one.detail["to"]) for one in told(here.bank, Action.EXPORT)] == [
        ("open", "/mnt/usb"),
        ("closed", "/mnt/usb"),
    ]


def test_weights_with_more_than_factors_are_not_redacted(here: GovernedStore, there: GovernedStore) -> None:
    import safetensors.torch

    from pmemx.core.factor_file import pack
    from pmemx.store.block_bytes import encode

    manifest, _ = encode(block())
    tensors = safetensors.torch.load(pack(block().factors))
    weights = safetensors.torch.save(tensors, metadata={"note": "zenobia"})
    import hashlib

    manifest = replace(manifest, weights=hashlib.sha256(weights).hexdigest(), size=len(weights))
    here.bank.commit(manifest, weights)
    with pytest.raises(CorruptBlock, match="hold more than factors"):
        copy(here.bank, there.bank, "law", redacted=True)
    copy(here.bank, there.bank, "law")
    assert digests(there) == digests(here)


def test_a_bank_that_cannot_be_written_may_be_pulled_from_unless_it_has_to_take_notes(
    here: GovernedStore, there: GovernedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.put(block())
    source = here.bank

    def refuse(location: str) -> Iterator[None]:
        raise StorageError(f"{location} is read-only")

    with monkeypatch.context() as patched:
        patched.setattr(
            "pmemx.store.ledger.engine.writing",
            lambda location: refuse(location) if "here" in Path(location).parts else writing(location),
        )
        assert copy(source, there.bank, "law").changed
    Members(source).enrol("tester", role=Role.OWNER)
    here.put(block(fill=2.0))
    with monkeypatch.context() as patched:
        patched.setattr(
            "pmemx.store.ledger.engine.writing",
            lambda location: refuse(location) if "here" in Path(location).parts else writing(location),
        )
        with pytest.raises(StorageError, match="read-only"):
            copy(source, there.bank, "law")
    assert len(digests(there)) == 1


def test_a_bank_of_the_past_gives_what_it_had_and_notes_it_today(here: GovernedStore, there: GovernedStore) -> None:
    three_versions(here)
    moment = Journal(here.bank).head()[0]
    here.put(block(fill=4.0))
    copy(here.bank.at(moment), there.bank, "law")
    assert digests(there) == digests(here)[:3]
    assert len(told(here.bank, Action.EXPORT)) == 1


# --------------------------------------------------------------------------------------------------------------- faults


class Crash(Exception):
    """What stands for a power cut."""


def counting(monkeypatch: pytest.MonkeyPatch, die: Callable[[], None], at: int) -> Callable[[], int]:
    """Let the step of that number fail: every put of an object and every entry of a journal is a step, before and after."""
    steps = [0]
    put, append = LocalObjects.put, Transaction.append

    def step() -> None:
        steps[0] += 1
        if steps[0] == at:
            die()

    def stepping_put(self: LocalObjects, data: bytes) -> str:
        step()
        done = put(self, data)
        step()
        return done

    def stepping_append(self: Transaction, action: Action, name: Name | None, detail: dict) -> Event:
        step()
        done = append(self, action, name, detail)
        step()
        return done

    monkeypatch.setattr(LocalObjects, "put", stepping_put)
    monkeypatch.setattr(Transaction, "append", stepping_append)
    return lambda: steps[0]


def _crash() -> None:
    raise Crash


def prepared(folder: Path) -> tuple[GovernedStore, GovernedStore]:
    """Two banks, the target with the first of three versions."""
    here, there = store(folder / "here"), store(folder / "there")
    here.put(block(fill=1.0))
    copy(here.bank, there.bank, "law")
    here.put(block(fill=2.0))
    here.put(block(fill=3.0))
    here.tag("law@3", "prod")
    record(here.bank, "law", exact=Figure(0.5))
    return here, there


def test_a_copy_that_fails_at_any_step_shows_nothing_and_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = prepared(tmp_path)
    before = Journal(there.bank).head()
    crashes = 0
    while True:
        with monkeypatch.context() as patched:
            counting(patched, _crash, crashes + 1)
            try:
                made = copy(here.bank, there.bank, "law", tags=None)
                break
            except Crash:
                crashes += 1
        assert Journal(there.bank).head() == before
        assert (digests(there), there.tags("law")) == (digests(here)[:1], {})
    # An EXPORT, two versions of two objects, two commits, scores, a tag, a PULL; each has a before and an after.
    assert crashes == 2 * (1 + 4 + 2 + 1 + 1 + 1)
    assert len(made.added) == 2
    assert (digests(there), there.tags("law")) == (digests(here), {"prod": 3})
    assert (here.verify(), there.verify()) == ((), ())


@pytest.mark.parametrize("at", [2, 10, 20])
def test_a_process_that_dies_in_a_copy_leaves_nothing_to_be_seen(tmp_path: Path, at: int) -> None:
    here, there = prepared(tmp_path)
    process = multiprocessing.get_context("fork").Process(target=_die_in_a_copy, args=(here, there, at))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert (digests(there), there.verify()) == (digests(here)[:1], ())
    assert len(copy(here.bank, there.bank, "law", tags=None).added) == 2
    assert (digests(there), there.verify(), here.verify()) == (digests(here), (), ())


def _die_in_a_copy(here: GovernedStore, there: GovernedStore, at: int) -> None:
    counting(pytest.MonkeyPatch(), lambda: os._exit(9), at)
    copy(here.bank, there.bank, "law", tags=None)


def objects_of(one: GovernedStore, reference: str) -> tuple[Path, Path]:
    """The files of a version's manifest and weights."""
    objects: Objects = one.bank.objects
    assert isinstance(objects, LocalObjects)
    found = one.bank.found(reference)
    return objects.file(found.version.digest), objects.file(found.weights)


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "linked"])
@pytest.mark.parametrize("redacted", [False, True])
def test_a_damaged_object_of_the_source_is_refused(
    here: GovernedStore, there: GovernedStore, kind: int, damage: str, redacted: bool
) -> None:
    three_versions(here)
    file = objects_of(here, "law@2")[kind]
    data = file.read_bytes()
    file.unlink()
    if damage == "flipped":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "cut":
        file.write_bytes(data[:-1])
    elif damage == "linked":
        (file.parent / "elsewhere").write_bytes(data)
        file.symlink_to(file.parent / "elsewhere")
    with pytest.raises(CorruptBlock, match="shared/law@2"):
        copy(here.bank, there.bank, "law", redacted=redacted)
    assert there.names() == ()
    assert there.verify() == ()


def test_weights_that_are_not_finite_are_refused_though_their_digest_is_right(
    here: GovernedStore, there: GovernedStore
) -> None:
    import hashlib

    from pmemx.store.block_bytes import encode

    manifest, weights = encode(block())
    weights = weights[:-4] + b"\x00\x00\xc0\x7f"  # a NaN in float32
    manifest = replace(manifest, weights=hashlib.sha256(weights).hexdigest())
    here.bank.commit(manifest, weights)
    with pytest.raises(CorruptBlock, match="NaN or infinity"):
        copy(here.bank, there.bank, "law")
    assert there.names() == ()


@pytest.mark.parametrize(
    "scores",
    [{"exact": {"value": "<script>"}}, {"exact": 3}, {"exact": {"odd": 1.0}}, [], {"exact": {"value": float("inf")}}],
)
def test_scores_that_are_none_are_refused(here: GovernedStore, there: GovernedStore, scores: object) -> None:
    here.put(block())
    head = Journal(here.bank).entries("law")[0]
    detail = {"number": 1, "scores": scores}
    forged = Event(
        head.seq + 1, head.at, head.principal, "evaluate", head.namespace, head.name, detail, previous=head.hash
    )
    with sqlite3.connect(here.path / "bank.db") as connection:
        import json

        row = (forged.seq, forged.at, forged.principal, forged.action, forged.namespace, forged.name)
        values = (*row, json.dumps(forged.detail), forged.previous, forged.hash)
        connection.execute("INSERT INTO journal VALUES (?,?,?,?,?,?,?,?,?)", values)
    connection.close()
    with pytest.raises(CorruptBlock, match="entry 2 of the source's journal"):
        copy(here.bank, there.bank, "law")
    assert not there.path.exists()


def test_a_frozen_or_an_expired_name_takes_no_versions(here: GovernedStore, there: GovernedStore) -> None:
    here.put(block(fill=1.0))
    copy(here.bank, there.bank, "law")
    here.put(block(fill=2.0))
    life = Life(there.bank)
    life.freeze("law")
    with pytest.raises(IllegalTransition, match="frozen"):
        copy(here.bank, there.bank, "law")
    life.thaw("law")
    life.archive("law")
    life.expire("law")
    with pytest.raises(IllegalTransition, match="only a tombstone"):
        copy(here.bank, there.bank, "law")
    with pytest.raises(UnknownBlock, match="expired at"):
        copy(there.bank, here.bank, "law", into=Name("shared", "new"))
    assert len(there.history("law")) == 1


def test_a_block_that_expired_and_began_again_is_not_copied_and_takes_no_copy(
    here: GovernedStore, there: GovernedStore
) -> None:
    here.put(block(fill=1.0))
    copy(here.bank, there.bank, "law")
    life = Life(here.bank)
    life.archive("law")
    life.expire("law")
    here.put(block(fill=2.0))
    for source, target in ((here, there), (there, here)):
        with pytest.raises(IllegalTransition, match="shared/law expired after version 1 and began again"):
            copy(source.bank, target.bank, "law")
    assert (len(here.history("law")), len(there.history("law"))) == (2, 1)


def test_a_copy_that_is_rolled_back_to_does_not_outlive_its_original(tmp_path: Path) -> None:
    now = [datetime(2027, 1, 1, tzinfo=UTC)]
    one, two = (GovernedStore(tmp_path / name, principal="root", clock=lambda: now[0]) for name in "12")
    one.put(block(fill=1.0, ttl=100.0))
    now[0] += timedelta(seconds=50)
    copy(one.bank, two.bank, "law")
    two.put(block(fill=2.0))
    for number in (1, 2, 3):  # a restored version binds whoever restores it in its turn
        two.rollback("law", number)
    assert (one.names(), two.names()) == (("law",), ("law",))
    now[0] += timedelta(seconds=60)
    assert (one.names(), two.names()) == ((), ())
    assert two.verify() == ()


def test_a_source_without_a_bank_is_an_empty_one(here: GovernedStore, there: GovernedStore) -> None:
    with pytest.raises(UnknownBlock, match="holds 0 blocks"):
        copy(here.bank, there.bank, "law")
    assert not here.path.exists()
    assert issubclass(UnknownBlock, PmemxError)


def test_a_card_of_its_own_in_the_target_is_no_hindrance(here: GovernedStore, there: GovernedStore) -> None:
    there.put(block("other", licence="mit"))
    here.put(block())
    copy(here.bank, there.bank, "law")
    assert there.find("other").card == BlockCard("other", "law", BASE, base_name="owner/tiny", licence="mit")
    assert there.names() == ("law", "other")
