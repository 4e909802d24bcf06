"""Subscriptions: a tag moves on and back here as it does there, and a source that is away harms no other."""

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from pmemx.core.access import Role
from pmemx.core.card import Sensitivity
from pmemx.core.errors import AccessDenied, ConfigError, StorageError, UnknownBlock
from pmemx.core.event import Action
from pmemx.core.metric import Figure
from pmemx.exchange.hub import write_hub_folder
from pmemx.exchange.source import checked_source, opened
from pmemx.exchange.subscription import subscribe, subscriptions, sync, unsubscribe
from pmemx.store.evaluations import Evaluations
from pmemx.store.governed import GovernedStore
from pmemx.store.journal import Journal
from pmemx.store.life import Life
from pmemx.store.members import Members
from pmemx.store.references import Name
from tests.exchange.banks import block, store
from tests.exchange.test_transfer import digests


@pytest.fixture
def here(tmp_path: Path) -> GovernedStore:
    """The source, with three versions and the tag prod on the first."""
    made = store(tmp_path / "here")
    for fill in (1.0, 2.0, 3.0):
        made.put(block(fill=fill))
    made.tag("law@1", "prod")
    return made


@pytest.fixture
def there(tmp_path: Path) -> GovernedStore:
    return store(tmp_path / "there")


def follow(there: GovernedStore, here: GovernedStore, reference: str = "law@prod", into: Name | None = None) -> None:
    subscribe(there.bank, str(here.path), reference, into=into)


def test_a_tag_is_followed_on_and_back_and_on(here: GovernedStore, there: GovernedStore) -> None:
    follow(there, here)
    assert there.names() == ()
    for number, versions in ((1, 1), (3, 3), (1, 3), (2, 3)):
        here.tag(f"law@{number}", "prod")
        (done,) = sync(there.bank)
        assert done.problem == ""
        assert done.transfer is not None
        assert done.transfer.tags == {"prod": number}
        assert there.tags("law") == {"prod": number}
        assert digests(there) == digests(here)[:versions]
    assert there.verify() == ()


def test_a_tag_that_stays_where_it_is_changes_nothing(here: GovernedStore, there: GovernedStore) -> None:
    follow(there, here)
    sync(there.bank)
    heads = Journal(here.bank).head(), Journal(there.bank).head()
    (done,) = sync(there.bank)
    assert done.transfer is not None
    assert not done.transfer.changed
    assert (Journal(here.bank).head(), Journal(there.bank).head()) == heads


def test_a_tag_that_somebody_moved_here_goes_back_to_where_the_source_has_it(
    here: GovernedStore, there: GovernedStore
) -> None:
    here.tag("law@2", "prod")
    follow(there, here)
    sync(there.bank)
    there.tag("law@1", "prod")
    sync(there.bank)
    assert there.tags("law") == {"prod": 2}


def test_a_source_that_is_away_is_reported_and_the_others_are_synced(
    here: GovernedStore, there: GovernedStore, tmp_path: Path
) -> None:
    other = store(tmp_path / "other")
    other.put(block("tax"))
    other.tag("tax", "prod")
    follow(there, here)
    follow(there, other, "tax@prod")
    shutil.move(here.path, tmp_path / "unplugged")
    law, tax = sync(there.bank)
    assert law.transfer is None
    assert law.problem.startswith(f"StorageError: there is no bank at {here.path}")
    assert tax.problem == ""
    assert there.names() == ("tax",)
    assert not Path(here.path).exists()
    shutil.move(tmp_path / "unplugged", here.path)
    assert [done.problem for done in sync(there.bank)] == ["", ""]
    assert there.names() == ("law", "tax")


@pytest.mark.parametrize("figure", ['{"value":1' + "0" * 400 + "}", '{"value":1.0,"n":1' + "0" * 30 + "}", "1" * 5000])
def test_a_source_with_an_impossible_score_is_reported_and_the_others_are_synced(
    here: GovernedStore, there: GovernedStore, tmp_path: Path, figure: str
) -> None:
    other = store(tmp_path / "other")
    other.put(block("tax"))
    other.tag("tax", "prod")
    Evaluations(here.bank).record("law@1", {"exact": Figure(0.5)})
    follow(there, here)
    follow(there, other, "tax@prod")
    with sqlite3.connect(here.path / "bank.db") as connection:
        detail = '{"number":1,"scores":{"exact":' + figure + "}}"
        connection.execute("UPDATE journal SET detail = ? WHERE action = 'evaluate'", (detail,))
    connection.close()
    law, tax = sync(there.bank)
    assert law.problem.startswith("CorruptBlock: ") and len(law.problem) < 300
    assert tax.problem == ""
    assert there.names() == ("tax",)


@pytest.mark.parametrize("place", ["x" * 5000, "a\0b"])
def test_a_source_that_cannot_be_a_path_is_reported_and_the_others_are_synced(
    here: GovernedStore, there: GovernedStore, place: str
) -> None:
    follow(there, here)
    with there.bank.transaction() as now:
        now.append(Action.SUBSCRIBE, Name("shared", "a"), {"source": place, "reference": "law@prod"})
    bad, law = sync(there.bank)
    assert bad.problem.startswith(("StorageError: ", "ConfigError: "))
    assert law.problem == "" and there.names() == ("law",)


def test_what_cannot_be_taken_is_reported_with_its_reason(
    here: GovernedStore, there: GovernedStore, tmp_path: Path
) -> None:
    follow(there, here)
    sync(there.bank)
    there.put(block(fill=9.0))
    here.tag("law@2", "prod")
    assert sync(there.bank)[0].problem.startswith("Diverged: shared/law holds")
    here.bank.untag("law", "prod")
    assert sync(there.bank)[0].problem.startswith("UnknownBlock: 'shared/law' has versions 1 to 3")
    here.put(block(fill=4.0, sensitivity=Sensitivity.SECRET.value))
    here.tag("law@4", "prod")
    assert sync(there.bank)[0].problem.startswith("AccessDenied: 'tester' may not read shared/law: it is secret")
    here.tag("law@1", "prod")
    Life(there.bank).freeze("law")
    assert sync(there.bank)[0].problem == ""  # nothing would change
    assert len(there.history("law")) == 2


def test_a_block_follows_one_source_at_a_time_until_it_follows_none(
    here: GovernedStore, there: GovernedStore, tmp_path: Path
) -> None:
    here.tag("law@2", "next")
    follow(there, here)
    follow(there, here)
    follow(there, here, "law@next")
    (only,) = subscriptions(there.bank)
    assert (only.name, only.source, only.reference) == (Name("shared", "law"), str(here.path), "law@next")
    assert [entry.action for entry in Journal(there.bank).entries()] == ["subscribe", "subscribe"]
    unsubscribe(there.bank, "law")
    assert (subscriptions(there.bank), sync(there.bank)) == ((), ())
    with pytest.raises(UnknownBlock, match="follows no other bank"):
        unsubscribe(there.bank, "law")
    assert there.verify() == ()


def test_a_block_may_follow_under_another_name_and_namespace(here: GovernedStore, there: GovernedStore) -> None:
    follow(there, here, into=Name("team:legal", "contracts"))
    sync(there.bank)
    assert digests(there, "team:legal/contracts") == digests(here)[:1]
    mine = replace(there.bank, namespace="user:tester")
    subscribe(mine, str(here.path), "shared/law@prod")
    sync(mine)
    assert [version.namespace for version in mine.history("law")] == ["user:tester"]


@pytest.mark.parametrize("reference", ["law", "law@2", "law@latest", "@prod", "0123456789ab"])
def test_only_a_tag_can_be_followed(here: GovernedStore, there: GovernedStore, reference: str) -> None:
    with pytest.raises(ConfigError):
        follow(there, here, reference)
    assert not there.path.exists()


def test_a_tag_that_is_not_there_is_told_at_once(here: GovernedStore, there: GovernedStore, tmp_path: Path) -> None:
    with pytest.raises(UnknownBlock, match="tags prod, but no 'best'"):
        follow(there, here, "law@best")
    with pytest.raises(StorageError, match="there is no bank at"):
        subscribe(there.bank, str(tmp_path / "nowhere"), "law@prod")
    assert not there.path.exists()


def test_who_may_not_write_a_block_does_not_subscribe_it(here: GovernedStore, there: GovernedStore) -> None:
    Members(there.bank).enrol("tester", role=Role.OWNER)
    Members(there.bank).enrol("bob", role=Role.READER, scope="shared")
    follow(there, here)
    bob = replace(there.bank, principal="bob")
    for change in (lambda: subscribe(bob, str(here.path), "law@prod"), lambda: unsubscribe(bob, "law")):
        with pytest.raises(AccessDenied, match="'bob' may not write shared/law"):
            change()
    assert len(subscriptions(bob)) == 1
    assert sync(bob)[0].problem.startswith("AccessDenied")
    Members(there.bank).enrol("eve")
    assert subscriptions(replace(there.bank, principal="eve")) == ()


def test_a_repository_s_folder_can_be_pulled_from_by_its_bank(
    here: GovernedStore, there: GovernedStore, tmp_path: Path
) -> None:
    write_hub_folder(here.bank, ["law"], tmp_path / "repo", repo_id="owner/law")
    subscribe(there.bank, str(tmp_path / "repo" / "bank"), "law@prod")
    assert [done.problem for done in sync(there.bank)] == [""]
    assert digests(there) == digests(here)[:1]


def test_a_source_is_kept_by_its_whole_path_and_without_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert checked_source("bank") == str(tmp_path / "bank")
    assert checked_source("hub:owner/name") == "hub:owner/name"
    assert checked_source("s3://bucket/bank|postgresql://me@db/bank") == "s3://bucket/bank|postgresql://me@db/bank"
    assert checked_source("bank|postgresql://me@db/bank") == f"{tmp_path / 'bank'}|postgresql://me@db/bank"
    for source in (
        "bank|postgresql://me:hush@db/bank",
        "s3://key:hush@bucket/bank|x",
        "bank|postgresql://me@db/bank?sslmode=require&password=hush",
        "bank|postgresql://db/bank?Pass%77ord=hush",
    ):
        with pytest.raises(ConfigError, match="comes with a password") as refusal:
            checked_source(source)
        assert "hush" not in str(refusal.value)
    for source in ("", " ", "|x", "s3://bucket/bank", "a\0b", "bank|postgresql://[db/bank"):
        with pytest.raises(ConfigError):
            checked_source(source)


def test_a_source_with_its_ledger_elsewhere_is_opened_there(
    here: GovernedStore, there: GovernedStore, tmp_path: Path
) -> None:
    shutil.move(here.path / "bank.db", tmp_path / "ledger.db")
    source = f"{here.path}|{tmp_path / 'ledger.db'}"
    with opened(source, there.bank) as other:
        assert other.names() == ("law",)
    subscribe(there.bank, source, "law@prod")
    assert [done.problem for done in sync(there.bank)] == [""]
    assert len(there.history("law")) == 1
