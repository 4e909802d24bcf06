"""Every verb of pmemx bank: what it does, what it prints, whom it refuses, and with which exit code."""

import argparse
import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
import termios
import unicodedata
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pmemx import cli
from pmemx.cli import main
from pmemx.cli_bank.card_document import card_document, card_of
from pmemx.cli_bank.looking import COLUMNS
from pmemx.cli_bank.printing import cell_text, visible
from pmemx.core import errors
from pmemx.core.access import Role
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.card_schema import CARD_SCHEMA, STANDING
from pmemx.core.clock import system_clock
from pmemx.core.metric import Figure
from pmemx.core.peft_folder import read_peft_folder
from pmemx.core.provenance import Provenance, Share
from pmemx.core.tag_policy import Bound, TagPolicy
from pmemx.exchange.hub import Pushed
from pmemx.exchange.subscription import subscribe, subscriptions
from pmemx.exit_codes import HELP, exit_code
from pmemx.export.peft import PeftExport
from pmemx.store import catalogue
from pmemx.store.answers import Answers
from pmemx.store.bank import Bank
from pmemx.store.evaluations import Evaluations
from pmemx.store.governed import GovernedStore
from pmemx.store.journal import Journal
from pmemx.store.life import Life
from pmemx.store.members import Members
from pmemx.store.signature import sign_export, verify_export
from pmemx.store.signing import Signing
from pmemx.store.snapshots import Snapshots

ROOT = Path(__file__).parents[1]
OWNER, REVOKED = "olga", "mallory"
HOSTILE = "=cmd|' /C calc'!A0 [bold red]x[/] \N{RIGHT-POINTING MAGNIFYING GLASS}"


def block(name: str, value: float, **card: Any) -> CapabilityBlock:
    factors = LoraFactors(torch.full((2, 4), value), torch.ones(3, 2), 0.5)
    return CapabilityBlock(
        BlockCard(name, f"domain of {name}", "f" * 64, base_name="tiny", **card), {"layers.0.up": factors}
    )


@dataclass(frozen=True)
class World:
    """A folder with a bank, a second bank, keys, a PEFT folder and JSON files."""

    path: Path

    @property
    def bank(self) -> Bank:
        return Bank(self.path / "bank", principal=OWNER)

    @property
    def other(self) -> Bank:
        return Bank(self.path / "other", principal=OWNER)

    @property
    def answer(self) -> str:
        return (self.path / "answer").read_text()

    def file(self, name: str) -> str:
        return str(self.path / name)


def build(path: Path) -> World:
    """law in three versions, both (made of law and medicine), medicine, something archived, something disused."""
    world = World(path)
    store = GovernedStore(path / "bank", principal=OWNER)
    law = [store.put(block("law", value), message=f"take {value}") for value in (1.0, 2.0)]
    medicine = store.put(block("medicine", 3.0, licence="mit"))
    Snapshots(store.bank).take("monday")
    store.put(block("law", 4.0, metrics={"exact": 0.5}))
    store.put(block("both", 5.0, parents=(law[1].digest, medicine.digest)))
    store.put(block("old", 6.0))
    store.put(block("hidden", 7.0, sensitivity="confidential"))
    store.tag("law@1", "stable")
    Life(store.bank).archive("old", reason="nobody asks")
    store.put(replaced(block("idle", 8.0), half_life=1.0))
    _key(path)
    Signing(store.bank).sign("law@1", path / "key.pem", path / "key.pub")
    Evaluations(store.bank).record("law@1", {"exact": Figure(0.9, 0.8, 1.0, 50, 10)})
    Evaluations(store.bank).protect("prod", TagPolicy(bounds=(Bound(metric="exact", at_least=0.7),)))
    share = Share("law", store.find("law@2").digest, 0.75)
    answer = Answers(store.bank).note(Provenance("f" * 64, "g" * 64, "", (share,), "1" * 64, "2" * 64))
    (path / "answer").write_text(answer)
    other = GovernedStore(path / "other", principal=OWNER)
    other.put(block("physics", 1.0))
    other.tag("physics", "blue")
    subscribe(store.bank, str(path / "other"), "physics@blue")
    (exported,) = PeftExport().export([block("imported", 9.0)], path / "peft")
    sign_export(exported, path / "key.pem")
    exported.rename(path / "adapter")
    (path / "scores.json").write_text(json.dumps({"exact": 0.4, "forgetting": {"value": 0.1, "n": 7}}))
    (path / "policy.json").write_text(json.dumps({"bounds": [{"metric": "forgetting", "at_most": 0.2}]}))
    document = card_document(store.bank, "law")
    (path / "card.json").write_text(json.dumps(document | {"licence": "apache-2.0", "reviewed": {"by": "me"}}))
    return world


def replaced(made: CapabilityBlock, **card: Any) -> CapabilityBlock:
    return CapabilityBlock(replace(made.card, **card), made.factors)


def _key(path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (path / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    (path / "key.pub").write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))


@pytest.fixture(scope="session")
def template() -> Iterator[Path]:
    with in_memory() as path:
        build(path)
        yield path


@contextmanager
def in_memory() -> Iterator[Path]:
    """A folder in memory where there is one: every write of a bank waits for its disk."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="pmemx-", dir=shm if os.access(shm, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def world(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("PMEMX_PRINCIPAL", OWNER)
    for name in ("PMEMX_TOKEN", "PMEMX_DATABASE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    with in_memory() as path:
        # The subscription's source is told by its whole path, so the copy still follows the template's second bank.
        made = World(shutil.copytree(template, path / "world"))
        monkeypatch.setenv("PMEMX_BANK", str(made.path / "bank"))
        yield made


def state(world: World, name: str) -> str:
    return Life(world.bank).state(name).value


@dataclass(frozen=True)
class Case:
    """One verb. check: what must hold of the world and of the JSON document afterwards. absent: the exit code in a folder
    without a bank, None where the verb would make one. offline: whether it touches no bank at all. torch: whether it needs
    tensors. serves: whether it goes on until it is interrupted."""

    arguments: Callable[[World], list[str]]
    check: Callable[[World, Any], None]
    prepare: Callable[[World], object] = lambda world: None
    absent: int | None = 4
    offline: bool = False
    torch: bool = False
    serves: bool = False


def says(*arguments: str) -> Callable[[World], list[str]]:
    """Arguments in which {name} is a file of the world."""
    return lambda world: [
        text.replace("{answer}", world.answer[:16]) if "{" in text and "answer" in text else _filled(world, text)
        for text in arguments
    ]


def _filled(world: World, text: str) -> str:
    return world.file(text[1:-1]) if text.startswith("{") else text


def check_list(world: World, rows: Any) -> None:
    assert [row["name"] for row in rows] == ["both", "hidden", "idle", "law", "medicine", "old"]
    law = rows[3]
    assert (law["number"], law["rank"], law["state"], law["uses"], law["tags"]) == (3, 2, "activated", 1, [])


def check_show(world: World, document: Any) -> None:
    jsonschema.validate(document, dict(CARD_SCHEMA), format_checker=jsonschema.FormatChecker())
    standing = document[STANDING]
    assert (document["name"], document["licence"], standing["version"], standing["state"]) == (
        "law",
        "",
        1,
        "activated",
    )
    assert (standing["tags"], standing["latest"], standing["message"]) == (["stable"], False, "take 1.0")
    assert (standing["by"], len(standing["signatures"])) == (OWNER, 1)
    assert standing["scores"]["exact"] == vars(Figure(0.9, 0.8, 1.0, 50, 10))
    assert standing["sites"] == [{"name": "layers.0.up", "rank": 2, "width_in": 4, "width_out": 3, "scale": 0.5}]


def check_log(world: World, rows: Any) -> None:
    assert [(row["version"], row["who"], row["message"]) for row in rows] == [
        (3, OWNER, ""),
        (2, OWNER, "take 2.0"),
        (1, OWNER, "take 1.0"),
    ]
    assert [row["tags"] for row in rows] == [[], [], ["stable"]]


def check_audit(world: World, rows: Any) -> None:
    assert [(row["action"], row["name"], row["detail"]["to"]) for row in rows] == [
        ("move", "law", "activated"),
        ("move", "old", "archived"),
    ]
    assert rows[0]["hash"] == next(e.hash for e in Journal(world.bank).entries(limit=99) if e.seq == rows[0]["entry"])


def check_diff(world: World, found: Any) -> None:
    (site,) = found["sites"]
    # The update is 0.5 * 1 B A with A all 1 and all 2: norms 0.5 * 2 * sqrt(12) and twice that, one direction.
    assert site["norms"] == pytest.approx([12**0.5, 2 * 12**0.5])
    assert site["distance"] == pytest.approx(12**0.5)
    assert (site["ranks"], site["angles"]) == ([2, 2], pytest.approx([0.0]))
    assert found["recorded"] == {"exact": {"kind": "removed", "before": 0.9, "after": None, "delta": None}}


def check_lineage(world: World, graph: Any) -> None:
    names = {(node["name"], node["number"]) for node in graph["nodes"]}
    assert {("both", 1), ("law", 2), ("medicine", 1)} <= names
    made = [edge for edge in graph["edges"] if edge["link"] == "made from"]
    assert {(edge["earlier"], edge["later"]) for edge in made} == {("law@2", "both@1"), ("medicine@1", "both@1")}


def check_trace(world: World, traced: Any) -> None:
    assert traced["id"] == world.answer
    assert [(part["name"], part["number"], part["weight"]) for part in traced["parts"]] == [("shared/law", 2, 0.75)]


def check_import(world: World, rows: Any) -> None:
    assert [(row["name"], row["version"]) for row in rows] == [("mine", 1)]
    got = GovernedStore(world.bank.path, principal=OWNER).get("mine").factors["layers.0.up"]
    assert torch.equal(got.delta(), block("imported", 9.0).factors["layers.0.up"].delta())


def check_put(world: World, rows: Any) -> None:
    assert [(row["name"], row["version"]) for row in rows] == [("law", 4)]
    before, after = world.bank.manifest("law@3"), world.bank.manifest("law@4")
    assert (after.card.licence, after.card.extra) == ("apache-2.0", {"reviewed": {"by": "me"}})
    assert (before.weights, before.sites) == (after.weights, after.sites)


def check_record(world: World, told: Any) -> None:
    assert Evaluations(world.bank).of("law@1") == {"exact": Figure(0.4), "forgetting": Figure(0.1, n=7)}
    assert [(fall["tag"], fall["number"], fall["now"]) for fall in told["falls"]] == [("prod", 1, None)]
    assert world.bank.tags("law") == {"stable": 1}


def check_sign(world: World, told: Any) -> None:
    Signing(world.bank).verify("medicine", Path(world.file("key.pub")))
    assert Signing(world.bank).keys("medicine") == (told["key"],)


def check_restore(world: World, told: Any) -> None:
    assert sorted(told["changed"]) == ["shared/law"]
    assert sorted(told["archived"]) == ["shared/both", "shared/hidden", "shared/idle"]
    assert world.bank.find("law").digest == world.bank.find("law@2").digest
    assert (state(world, "both"), world.bank.tags("law")) == ("archived", {})


def check_sweep(world: World, told: Any) -> None:
    assert (told["done"], told["moves"]) == (
        True,
        [{"name": "shared/old", "from": "archived", "to": "expired", "trigger": "expire"}],
    )
    assert state(world, "old") == "expired"


def check_gc(world: World, told: Any) -> None:
    weights = Journal(world.bank).entries("old", limit=99)[-1].detail["weights"]
    assert weights in [item["name"] for item in told["garbage"]]
    assert not world.bank.objects.has(weights)


def check_settle(world: World, told: Any) -> None:
    weights = Journal(world.bank).entries("old", limit=99)[-1].detail["weights"]
    assert (told["cooled"], told["warmed"]) == ([weights], [])
    assert not world.bank.objects.has(weights)
    assert replace(world.bank, cold=world.file("cold")).objects.has(weights)


def check_members(world: World, rows: Any) -> None:
    named = {row["name"]: row["grants"] for row in rows}
    assert named == {"ada": [{"role": "reader", "scope": "*"}], OWNER: [{"role": "owner", "scope": "*"}]}
    assert [(row["guarded"], row["revoked"]) for row in rows] == [(False, False), (False, False)]


def check_enrol(world: World, told: Any) -> None:
    assert told["principal"] == "bob"
    (entry,) = [
        e for e in Journal(world.bank).entries(limit=99) if e.detail.get("principal") == "bob" and e.action == "enrol"
    ]
    assert told["token"] not in json.dumps(entry.detail)
    with pytest.raises(errors.AccessDenied, match="PMEMX_TOKEN"):
        Bank(world.bank.path, principal="bob").names()
    assert "law" in Bank(world.bank.path, principal="bob", token=told["token"]).names()


def roles(world: World, principal: str) -> list[tuple[str, str]]:
    (member,) = [member for member in Members(world.bank).list() if member.name == principal]
    return [(grant.role.value, grant.scope) for grant in member.grants]


def check_export(world: World, paths: Any) -> None:
    (path,) = paths
    assert read_peft_folder(Path(path)).card.name == "hidden"
    assert Journal(world.bank).entries("hidden", limit=1)[0].detail["redacted"]
    for folder in (Path(path), Path(world.file("out"))):
        verify_export(folder, Path(world.file("key.pub")))


def check_checkout(world: World, told: Any) -> None:
    folder, version = Path(told["folder"]), world.bank.find("law@2")
    assert hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest() == version.digest == told["digest"]
    weights = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert weights == world.bank.manifest("law@2").weights
    assert (folder / "adapter_config.json").is_file()
    told = json.loads((folder / "pmemx_version.json").read_text())
    assert told == {"namespace": "shared", "version": 2, "digest": version.digest}


def check_pull(world: World, rows: Any) -> None:
    assert [(row["name"], row["version"], row["tags"]) for row in rows] == [("physics", 1, {"blue": 1})]
    assert world.bank.find("physics@blue").digest == world.other.find("physics").digest


def check_push(world: World, rows: Any) -> None:
    assert [(row["name"], row["version"], len(row["added"])) for row in rows] == [("justice", 3, 3)]
    versions = [version.digest for version in world.other.history("justice")]
    assert versions == [version.digest for version in world.bank.history("law")]


def check_sync(world: World, rows: Any) -> None:
    assert [(row["name"], row["problem"], row["transfer"]["version"]) for row in rows] == [("shared/physics", "", 1)]
    assert world.bank.tags("physics") == {"blue": 1}


def make_old(world: World) -> None:
    """A bank as pmemx wrote it before it had a ledger."""
    shutil.rmtree(world.path / "bank")
    shutil.copytree(ROOT / "tests/store/golden/format_one", world.path / "bank")


def check_migrate(world: World, lines: Any) -> None:
    assert len(lines) == len(list((ROOT / "tests/store/golden/format_one/refs").iterdir()))
    assert len(world.bank.names()) == len(lines)
    assert GovernedStore(world.bank.path, principal=OWNER).verify() == ()


def damage(world: World) -> None:
    with contextlib.closing(sqlite3.connect(world.path / "bank" / "bank.db", isolation_level=None)) as connection:
        connection.execute("UPDATE states SET state = 'frozen'")


def check_rebuild(world: World, lines: Any) -> None:
    assert [line.split(":")[0] for line in lines] == ["states"]
    assert (state(world, "law"), state(world, "old")) == ("activated", "archived")


def lose_ledger(world: World) -> None:
    for file in (world.path / "bank").glob("bank.db*"):
        file.unlink()


def check_salvage(world: World, names: Any) -> None:
    assert sorted(names) == ["both@1", "hidden@1", "idle@1", "law@1", "law@2", "law@3", "medicine@1", "old@1"]
    assert set(world.bank.names()) == {"both", "hidden", "idle", "law", "medicine", "old"}


def enrol(*members: tuple[str, Role | None]) -> Callable[[World], None]:
    """The owner, then others."""

    def done(world: World) -> None:
        Members(world.bank).enrol(OWNER, role=Role.OWNER)
        for name, role in members:
            Members(world.bank).enrol(name, role=role)

    return done


def holds(expected: Callable[[World], bool]) -> Callable[[World, Any], None]:
    def check(world: World, _: Any) -> None:
        assert expected(world)

    return check


def equals(expected: Any) -> Callable[[World, Any], None]:
    def check(_: World, document: Any) -> None:
        assert document == expected

    return check


CASES: dict[str, Case] = {
    "list": Case(says("list"), check_list),
    "names": Case(says("names"), equals(["both", "hidden", "idle", "law", "medicine"])),
    "show": Case(says("show", "law@stable"), check_show),
    "log": Case(says("log", "law"), check_log),
    "audit": Case(says("audit", "--action", "move", "--principal", OWNER), check_audit),
    "diff": Case(says("diff", "law@1", "law@2"), check_diff, torch=True),
    "lineage": Case(says("lineage", "both"), check_lineage),
    "trace": Case(says("trace", "{answer}"), check_trace),
    "verify": Case(says("verify"), equals([]), torch=True),
    "head": Case(says("head"), lambda world, told: equals(tuple(told.values()))(world, Journal(world.bank).head())),
    "verify-signature": Case(
        says("verify-signature", "law@1", "--public", "{key.pub}"),
        lambda world, told: equals((told["key"],))(world, Signing(world.bank).keys("law@1")),
    ),
    "verify-export": Case(
        says("verify-export", "{adapter}", "--public", "{key.pub}"),
        lambda world, told: equals((told["key"],))(world, Signing(world.bank).keys("law@1")),
        offline=True,
    ),
    "schema": Case(says("schema"), equals(json.loads(json.dumps(dict(CARD_SCHEMA)))), offline=True),
    "import": Case(says("import", "{adapter}", "--name", "mine"), check_import, absent=None, torch=True),
    "put": Case(says("put", "law", "{card.json}"), check_put),
    "tag": Case(says("tag", "law@1", "prod"), holds(lambda world: world.bank.tags("law") == {"prod": 1, "stable": 1})),
    "untag": Case(says("untag", "law", "stable"), holds(lambda world: world.bank.tags("law") == {})),
    "rollback": Case(
        says("rollback", "law", "1"),
        holds(lambda world: (world.bank.find("law").number, world.bank.find("law").restores) == (4, 1)),
    ),
    "use": Case(
        says("use", "medicine", "--count", "3", "--relevance", "0.5"),
        holds(lambda world: (state(world, "medicine"), _uses(world, "medicine")) == ("activated", (3, 0.5))),
    ),
    "record": Case(
        says("record", "law@1", "{scores.json}", "--by", "me"), check_record, lambda world: world.bank.tag("law@1", "prod")
    ),
    "sign": Case(says("sign", "medicine", "--key", "{key.pem}", "--public", "{key.pub}"), check_sign),
    "archive": Case(says("archive", "law"), holds(lambda world: state(world, "law") == "archived")),
    "unarchive": Case(says("unarchive", "old"), holds(lambda world: state(world, "old") == "generated")),
    "freeze": Case(says("freeze", "law"), holds(lambda world: state(world, "law") == "frozen")),
    "thaw": Case(
        says("thaw", "law"), holds(lambda world: state(world, "law") == "activated"), lambda world: Life(world.bank).freeze("law")
    ),
    "expire": Case(says("expire", "old", "--yes"), holds(lambda world: state(world, "old") == "expired")),
    "merge": Case(
        says("merge", "law", "medicine", "--into", "both"),
        holds(lambda world: (state(world, "law"), state(world, "medicine")) == ("merged", "merged")),
    ),
    "sweep": Case(says("sweep", "--expire-archived-after", "0", "--yes"), check_sweep),
    "gc": Case(says("gc", "--yes"), check_gc, lambda world: Life(world.bank).expire("old")),
    "settle": Case(says("settle", "--cold", "{cold}"), check_settle),
    "snapshot take": Case(
        says("snapshot", "take", "tuesday"),
        holds(lambda world: [one.name for one in Snapshots(world.bank).list()] == ["monday", "tuesday"]),
    ),
    "snapshot list": Case(says("snapshot", "list"), equals([{"name": "monday", "moment": 3}])),
    "snapshot drop": Case(says("snapshot", "drop", "monday"), holds(lambda world: Snapshots(world.bank).list() == ())),
    "restore": Case(says("restore", "monday", "--yes"), check_restore),
    "members": Case(says("members"), check_members, enrol(("ada", Role.READER))),
    "may": Case(
        says("may", "read", "law"),
        lambda _, told: equals((True, "read", "shared/law"))(_, (told["allowed"], told["permission"], told["subject"])),
    ),
    "enrol": Case(says("enrol", "bob", "--role", "reader", "--with-token"), check_enrol, enrol(), absent=None),
    "grant": Case(
        says("grant", "ada", "editor", "team:legal"),
        holds(lambda world: roles(world, "ada") == [("editor", "team:legal")]),
        enrol(("ada", None)),
    ),
    "withdraw": Case(
        says("withdraw", "ada", "reader"), holds(lambda world: roles(world, "ada") == []), enrol(("ada", Role.READER))
    ),
    "revoke": Case(
        says("revoke", "ada", "--yes"),
        holds(lambda world: [member.revoked for member in Members(world.bank).list()] == [True, False]),
        enrol(("ada", Role.READER)),
    ),
    "protect": Case(
        says("protect", "best", "{policy.json}"),
        holds(
            lambda world: Evaluations(world.bank).policies()["best"]
            == TagPolicy(bounds=(Bound(metric="forgetting", at_most=0.2),))
        ),
    ),
    "unprotect": Case(says("unprotect", "prod"), holds(lambda world: Evaluations(world.bank).policies() == {})),
    "policies": Case(
        says("policies"),
        lambda _, told: equals(("exact", 0.7))(_, (told["prod"]["bounds"][0]["metric"], told["prod"]["bounds"][0]["at_least"])),
    ),
    "export": Case(says("export", "{out}", "hidden", "--redact", "--sign", "{key.pem}"), check_export, torch=True),
    "checkout": Case(says("checkout", "law@2", "{out}"), check_checkout, torch=True),
    "pull": Case(says("pull", "{other}", "physics", "--all-tags"), check_pull, absent=None, torch=True),
    "push": Case(says("push", "{other}", "law", "--into", "justice"), check_push, torch=True),
    "subscribe": Case(
        says("subscribe", "{other}", "physics@blue", "--into", "optics"),
        lambda world, told: equals(str(Path(world.file("other")).resolve()))(world, told["source"]),
        absent=None, torch=True),
    "unsubscribe": Case(
        says("unsubscribe", "physics"), holds(lambda world: subscriptions(world.bank) == ()), torch=True),
    "subscriptions": Case(
        says("subscriptions"), lambda _, rows: equals([("shared/physics", "physics@blue")])(_, [(r["name"], r["reference"]) for r in rows]), torch=True),
    "sync": Case(says("sync"), check_sync, torch=True),
    "migrate": Case(says("migrate"), check_migrate, make_old),
    "rebuild": Case(says("rebuild"), check_rebuild, damage),
    "salvage": Case(says("salvage"), check_salvage, lose_ledger),
    "serve": Case(says("serve", "--port", "0"), lambda world, document: None, serves=True),
}  # fmt: skip


def _uses(world: World, name: str) -> tuple[int, float]:
    standing = card_document(world.bank, name)[STANDING]
    return standing["uses"], standing["relevance"]


def fresh(arguments: list[str], *, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter."""
    code = f"import sys; from pmemx.cli import main; sys.exit(main({arguments!a}))"
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([sys.executable, "-c", code], env=env, input=stdin, capture_output=True, text=True)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Exit code, output and complaints of a verb in this process."""

    def done(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["bank", *arguments])
        return code, *capsys.readouterr()

    return done


Run = Callable[..., tuple[int, str, str]]


def verbs_of(parser: argparse.ArgumentParser, front: str = "") -> Iterator[str]:
    """Every verb below a parser, with those that stand in front of it."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield front.strip()
    for action in inner:
        for name, child in action.choices.items():
            yield from verbs_of(child, f"{front} {name}")


def parsers(front: str) -> argparse.ArgumentParser:
    found = cli._parser()
    for name in front.split():
        (action,) = [action for action in found._actions if isinstance(action, argparse._SubParsersAction)]
        found = action.choices[name]
    return found


# ---------------------------------------------------------------------------------------------------- every verb


def test_every_verb_of_the_parser_has_a_case():
    assert set(verbs_of(parsers("bank"))) == CASES.keys()


ENDING = [verb for verb, case in CASES.items() if not case.serves]
ABOUT_A_BANK = [verb for verb, case in CASES.items() if not case.offline]


@pytest.mark.parametrize("verb", ENDING)
def test_a_verb_does_what_it_says_and_prints_one_document(verb: str, world: World, run: Run):
    case = CASES[verb]
    case.prepare(world)
    code, out, err = run(*case.arguments(world), "--json")
    assert (code, err) == (0, "")
    assert out.isascii()
    case.check(world, json.loads(out))


@pytest.mark.parametrize("verb", ENDING)
def test_a_verb_speaks_to_people_without_commanding_their_terminal(verb: str, world: World, run: Run):
    case = CASES[verb]
    case.prepare(world)
    code, out, err = run(*case.arguments(world))
    assert (code, err) == (0, "")
    assert out.strip()
    assert {unicodedata.category(character) for character in out.replace("\n", "")}.isdisjoint({"Cc", "Cs"})


@pytest.mark.parametrize("verb", ABOUT_A_BANK)
def test_a_revoked_principal_is_refused_by_every_verb(verb: str, world: World, run: Run):
    case = CASES[verb]
    if verb not in ("migrate", "salvage"):  # which then have a bank without principals before them
        case.prepare(world)
    if not Members(world.bank).list():
        enrol()(world)
    Members(world.bank).enrol(REVOKED, role=Role.OWNER)
    Members(world.bank).revoke(REVOKED)
    before = Journal(world.bank).head()[0]
    code, out, err = run(*case.arguments(world), "--as", REVOKED)
    assert (code, out) == (3, "")
    assert err.startswith("AccessDenied: 'mallory' may not read the bank: this principal was revoked")
    added = Journal(world.bank).entries(limit=Journal(world.bank).head()[0] - before)
    assert {(entry.action, entry.principal) for entry in added} == {("denied", REVOKED)}


@pytest.mark.parametrize("verb", ABOUT_A_BANK)
def test_where_there_is_no_bank_a_verb_makes_none_unless_that_is_its_work(verb: str, world: World, run: Run):
    nowhere = world.path / "nowhere"
    code, _, err = run(*CASES[verb].arguments(world), "--bank", str(nowhere))
    if CASES[verb].absent is None:
        assert nowhere.exists() or verb == "enrol"
        return
    assert code == CASES[verb].absent
    assert err.startswith(f"UnknownBlock: the folder {nowhere} does not exist; say --bank")
    assert not nowhere.exists()


@pytest.mark.parametrize("verb", list(CASES))
def test_a_verb_has_the_options_of_every_verb_and_its_help_says_what_it_does(verb: str):
    parser = parsers(f"bank {verb}")
    assert {"--bank", "--database", "--as", "--namespace", "--json", "--at"} <= set(parser._option_string_actions)
    assert not any("token" in option and option != "--with-token" for option in parser._option_string_actions)
    assert parser.description
    assert "PMEMX_TOKEN" in parser.format_help()


def test_the_page_is_served_until_it_is_interrupted(world: World):
    code = "import sys; from pmemx.cli import main; sys.exit(main(['bank', 'serve', '--port', '0']))"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None and server.stderr is not None
        address = server.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address)
        with urllib.request.urlopen(address, timeout=60) as page:
            assert b"medicine" in page.read()
        server.send_signal(signal.SIGINT)
        assert (server.wait(60), server.stderr.read()) == (0, "")


def test_a_page_asks_for_a_secret_that_was_made_for_it_and_never_for_that_of_who_serves_it(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
):
    tokens: list[str] = []

    def serve(bank: Bank, *, token: str, announce: Callable[[str], object], **settings: object) -> None:
        tokens.append(token)
        announce("http://127.0.0.1:1")
        raise KeyboardInterrupt

    monkeypatch.setattr("pmemx.page.serve.serve", serve)
    monkeypatch.setenv("PMEMX_TOKEN", "of the principal")
    assert run("serve", "--json") == (0, '{\n "address": "http://127.0.0.1:1"\n}\n', "")
    run("serve", "--with-token")
    run("serve", "--with-token")
    monkeypatch.setenv("PMEMX_PAGE_TOKEN", "of the page")
    run("serve")
    assert (tokens[0], tokens[3], len({*tokens})) == ("", "of the page", 4)
    assert min(len(token) for token in tokens[1:3]) >= 32


# ---------------------------------------------------------------------------------------------------- exit codes


def test_every_error_has_one_code_and_the_help_tells_what_it_means():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PmemxError)]
    codes = {kind.__name__: exit_code(kind("x")) for kind in kinds}
    special = {"ConfigError": 2, "AccessDenied": 3, "PolicyRefused": 3, "IllegalTransition": 3, "UnknownBlock": 4}
    special |= {"UnknownAnswer": 4, "CorruptBlock": 5, "StorageError": 6, "Diverged": 7}
    assert codes == dict.fromkeys(codes, 1) | special
    told = {int(line.split()[0]) for line in HELP.splitlines()[1:]}
    assert told == {0, *codes.values()}
    assert HELP in cli._parser().format_help() and HELP in parsers("bank").format_help()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["list", "--where", "domian=law"], 2, "ConfigError: no card has a field 'domian'; did you mean 'domain'?"),
        (["list", "--where", "rank=two"], 2, "ConfigError: rank is a whole number, got 'two'"),
        (
            ["list", "--where", "state=asleep"],
            2,
            "ConfigError: no block is in the state 'asleep'; the states are generated",
        ),
        (
            ["list", "--where", "last used=monday"],
            2,
            "ConfigError: last used is a time such as 2026-01-31T12:00:00+00:00",
        ),
        (["list", "--where", "digset=0"], 2, "ConfigError: no card has a field 'digset'; did you mean 'digest'?"),
        (["list", "--where", "domain"], 2, "ConfigError: --where 'domain' has no value"),
        (["list", "--where", "name=law", "--where", "name=old"], 2, "ConfigError: one field is asked for two values"),
        (["show", "law", "--namespace", "elsewhere"], 2, "ConfigError: a namespace is 'shared'"),
        (["record", "law", "nowhere.json"], 2, "ConfigError: nowhere.json cannot be read as JSON"),
        (["list", "--bank", "s3://bucket/bank"], 2, "ConfigError: s3://bucket/bank can hold the objects of a bank"),
        (["gc", "--yes", "--as", "two words"], 3, "AccessDenied: 'two words' may not read the bank"),
        (["tag", "medicine", "prod"], 3, "PolicyRefused: version 1 of shared/medicine may not take the protected tag"),
        (["thaw", "law"], 3, "IllegalTransition: block shared/law is activated"),
        (["export", "out", "hidden"], 3, "AccessDenied: 'olga' may not read shared/hidden: it is confidential"),
        (["checkout", "hidden", "out"], 3, "AccessDenied: 'olga' may not read shared/hidden: it is confidential"),
        (["show", "lwa"], 4, "UnknownBlock: no block 'lwa'; did you mean 'law'?"),
        (
            ["list", "--at", "sunday"],
            4,
            "UnknownBlock: 'sunday' is no snapshot, no entry and no time; the snapshots are: monday",
        ),
        (["list", "--at", "999"], 4, "UnknownBlock: the journal has entries"),
        (["trace", "feed"], 4, "UnknownAnswer: no answer that was noted begins with 'feed'"),
        (["tag", "law", "new", "--at", "monday"], 6, "StorageError: this shows"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_by_its_code(
    arguments: list[str], code: int, message: str, world: World, run: Run
):
    if code == 3 and "--as" in arguments:
        enrol()(world)
    before = Journal(world.bank).head()
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith(message)
    assert len(err.splitlines()) == 1
    assert Journal(world.bank).head() == before or code == 3  # refusals are noted
    assert not Path("out").exists()


def test_a_changed_byte_is_a_finding_for_verify_and_an_error_for_whoever_needs_it(world: World, run: Run):
    flip(world, world.bank.manifest("law@2").weights)
    code, out, err = run("verify")
    assert (code, err) == (1, "")
    assert out.startswith("block 'law', version ") and len(out.splitlines()) == 1
    assert run("checkout", "law@2", "out")[0] == 5
    assert run("diff", "law@1", "law@2")[0] == 5
    assert run("diff", "law@1", "law@2", "--card")[0] == 0
    assert json.loads(run("verify", "--digests", "--json")[1])[0].startswith("block 'law'")


def flip(world: World, digest: str) -> None:
    """Change the last byte of an object."""
    (file,) = (world.path / "bank").rglob(digest)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.chmod(stat.S_IRUSR | stat.S_IWUSR)
    file.write_bytes(bytes(data))


def test_a_head_that_was_noted_and_is_gone_is_a_finding(world: World, run: Run):
    number, head = run("head")[1].split()
    run("use", "law")
    assert run("verify", "--head", head)[0] == 0
    code, out, _ = run("verify", "--head", "0" * 63 + "1")
    assert (code, "no entry has the hash" in out) == (1, True)
    assert Journal(world.bank).head()[0] == int(number) + 1


def test_two_histories_under_one_name_diverge_with_code_7(world: World, run: Run):
    GovernedStore(world.other.path, principal=OWNER).put(block("law", 99.0))
    code, out, err = run("push", world.file("other"), "law")
    assert (code, out) == (7, "")
    assert err.startswith("Diverged: shared/law holds ")


def test_a_source_that_is_away_is_a_finding_of_sync_and_stops_no_other(world: World, run: Run):
    assert run("subscribe", world.file("other"), "physics@blue", "--into", "optics")[0] == 0
    shutil.rmtree(world.path / "other")
    code, out, _ = run("sync", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 1
    assert rows["shared/optics"]["problem"].startswith("StorageError: there is no bank at")
    assert rows["shared/physics"]["problem"] == ""


def test_what_may_not_be_done_is_code_3_and_a_reason(world: World, run: Run):
    enrol(("ada", Role.READER))(world)
    code, out, err = run("may", "write", "law", "--as", "ada")
    assert (code, err) == (3, "")
    assert out.startswith("ada may not write shared/law: no role of theirs gives it")
    code, out, _ = run("may", "read", "hidden", "--purpose", "leave", "--json")
    assert (code, json.loads(out)["allowed"]) == (3, False)
    assert run("may", "write", "law", "--principal", "ada")[0] == 3
    assert run("may", "read", "law", "--principal", "ada")[0] == 0


def test_a_folder_that_is_refused_does_not_stop_the_others(world: World, run: Run):
    (world.path / "empty").mkdir()
    code, out, err = run("import", world.file("empty"), world.file("adapter"), "--json")
    assert (code, [row["name"] for row in json.loads(out)]) == (1, ["imported"])
    assert err.startswith("PmemxError: 1 of 2 folders refused\nUnsupportedAdapter: ")
    assert run("import", world.file("empty"))[0] == 1
    assert run("import", world.file("empty"), world.file("adapter"), "--name", "one")[0] == 2


# ---------------------------------------------------------------------------------------------------- looking


def listed(run: Run, *arguments: str, full: bool = False) -> list[str]:
    """Names of the blocks; full: with the namespace as the list shows it."""
    code, out, err = run("list", "--json", *arguments)
    assert (code, err) == (0, "")
    return [catalogue.full_name(row["namespace"], row["name"]) if full else row["name"] for row in json.loads(out)]


@pytest.mark.parametrize("column", COLUMNS)
def test_what_a_column_of_the_list_shows_finds_the_blocks_that_show_it(column: str, world: World, run: Run):
    store = GovernedStore(world.bank.path, principal=OWNER)
    GovernedStore(store.path, namespace="team:legal", principal=OWNER).put(block("contracts", 1.0))
    store.put(replaced(block("nameless", 2.0), base_name="", base="0123456789abcdef" * 4))
    store.put(replaced(block("baseless", 3.0), base_name="", base=""))
    wider = LoraFactors(torch.ones(3, 4), torch.ones(3, 3), 0.5)
    store.put(replace(block("ranked", 4.0), factors={"layers.0.up": wider}))
    store.tag("medicine", "stable")
    store.tag("medicine", 'a, "b"')
    store.tag("law@2", "c, d")
    store.tag("both", "blue")
    with world.bank.ledger.reading() as now:
        lines = catalogue.listing(now)
    shown = {line.full_name: cell_text(COLUMNS[column](line)) for line in lines}
    assert len(shown) == 10 and (
        column in ("rank", "bytes", "state", "version", "uses", "last used") or len(set(shown.values())) > 2
    )
    for name, cell in shown.items():
        found = listed(run, "--where", f"{column}={cell}", full=True)
        if column == "tags":  # more tags than were asked for are no fault
            assert name in found and all(shown[other] for other in found) == bool(cell)
        else:
            assert found == [other for other, same in shown.items() if same == cell]


def test_a_tag_is_shown_on_the_version_that_it_points_at(world: World, run: Run):
    world.bank.tag("law", "trial")
    world.bank.tag("law@2", "blue")
    (row,) = [row for row in json.loads(run("list", "--json")[1]) if row["name"] == "law"]
    assert (row["number"], row["tags"], row["other_tags"]) == (3, ["trial"], {"blue": 2, "stable": 1})
    assert "trial, blue@2, stable@1" in run("list", "--text", "law")[1]
    wanted = {
        "stable": ["law"], "stable@1": ["law"], "stable@2": [], "trial, stable@1": ["law"], "trial, none": [],
        "trial@3": ["law"], "blue": ["law"],
    }  # fmt: skip
    assert {tags: listed(run, "--where", f"tags={tags}") for tags in wanted} == wanted
    assert "law" not in listed(run, "--where", "tags=")
    for reference, own, others in (
        ("law", ["trial"], {"blue": 2, "stable": 1}),
        ("law@1", ["stable"], {"blue": 2, "trial": 3}),
    ):
        standing = json.loads(run("show", reference, "--json")[1])[STANDING]
        assert (standing["tags"], standing["other_tags"]) == (own, others)
    assert re.search(r"^other_tags +blue@2, stable@1$", run("show", "law")[1], re.MULTILINE)
    assert {row["version"]: row["tags"] for row in json.loads(run("log", "law", "--json")[1])} == {
        1: ["stable"], 2: ["blue"], 3: ["trial"],
    }  # fmt: skip


def test_a_list_is_narrowed_by_fields_text_state_and_namespace(world: World, run: Run):
    team = replace(world.bank, namespace="team:legal")
    GovernedStore(team.path, namespace="team:legal", principal=OWNER).put(block("contracts", 1.0, extra={"team": "x"}))
    assert listed(run, "--where", "licence=mit") == ["medicine"]
    assert listed(run, "--where", "sensitivity=confidential", "--where", "base_name=tiny") == ["hidden"]
    assert listed(run, "--where", "extra.team=x") == ["contracts"]
    assert listed(run, "--where", "tag=stable") == ["law"]
    assert listed(run, "--text", "DICI") == ["medicine"]
    assert listed(run, "--state", "archived", "--state", "activated") == ["law", "old"]
    assert listed(run, "--namespace", "team:legal") == ["contracts"]
    Life(world.bank).expire("old")
    assert "old" not in listed(run)
    assert listed(run, "--state", "expired") == listed(run, "--where", "state=expired") == ["old"]
    first = [row["name"] for row in json.loads(run("list", "--json", "--limit", "1")[1])]
    second = [row["name"] for row in json.loads(run("list", "--json", "--limit", "1", "--after", *first)[1])]
    assert first < second
    assert run("list", "--limit", "0")[0] == 2
    assert run("list", "--text", "nothing")[1] == f"no block of {world.bank.path} is such\n"


def test_a_name_without_a_namespace_is_one_of_the_namespace_that_was_said(world: World, run: Run):
    law = world.bank.find("law")
    assert run("import", world.file("adapter"), "--name", "law", "--namespace", "team:legal")[0] == 0
    own = world.bank.find("team:legal/law")
    assert own.digest != law.digest
    shown = [("law",), ("law@1",), ("shared/law",), (law.digest[:16],)]
    digests = [
        json.loads(run("show", *one, "--namespace", "team:legal", "--json")[1])[STANDING]["digest"] for one in shown
    ]
    assert digests == [own.digest, own.digest, law.digest, law.digest]
    assert run("tag", "law", "new", "--namespace", "team:legal")[0] == 0
    assert (world.bank.tags("team:legal/law"), world.bank.tags("law")) == ({"new": 1}, {"stable": 1})


def test_options_may_stand_before_the_verb_and_after_it(world: World, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PMEMX_BANK", str(world.path / "nowhere"))
    before = run("--bank", world.file("other"), "--json", "names")
    assert before == run("names", "--json", "--bank", world.file("other")) == (0, '[\n "physics"\n]\n', "")
    assert run("--bank", world.file("bank"), "names", "--bank", world.file("other"), "--json") == before
    assert run("names")[2].startswith(f"UnknownBlock: the folder {world.path / 'nowhere'} does not exist; say --bank")


def test_a_folder_without_a_ledger_holds_no_block(run: Run, world: World):
    (world.path / "new").mkdir()
    for arguments in (["list"], ["verify"]):
        assert run(*arguments, "--bank", world.file("new")) == (0, f"{world.file('new')} holds no block\n", "")
    code, _, said = run("show", "law", "--bank", world.file("new"))
    assert (code, said) == (4, "UnknownBlock: no block 'law'; the bank holds 0 blocks\n")
    archived = run("archive", "law", "--bank", world.file("new"))
    assert archived[2].startswith(f"UnknownBlock: {world.file('new')} holds no block; say --bank")


@pytest.mark.parametrize("verb", [["list"], ["names"], ["verify"], ["show", "law"], ["migrate"], ["gc"]])
def test_a_folder_that_does_not_exist_is_no_empty_bank(verb: list[str], run: Run):
    assert run(*verb, "--bank", "nowhere") == (
        4,
        "",
        "UnknownBlock: the folder nowhere does not exist; say --bank where the bank is, or set PMEMX_BANK; "
        "`pmemx run` makes one, import and pull begin one\n",
    )


def test_where_pmemx_0_1_looked_is_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PMEMX_BANK", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bank").mkdir()
    code, _, said = run("list")
    assert code == 4 and "outputs/bank does not exist; there is a folder ./bank" in said and "--bank bank" in said
    (tmp_path / "outputs" / "bank").mkdir(parents=True)
    assert run("list") == (0, "outputs/bank holds no block\n", "")


def test_the_past_is_seen_by_every_reading_verb_and_not_touched(world: World, run: Run):
    entries = sorted(Journal(world.bank).entries(limit=999), key=lambda entry: entry.seq)
    head, monday = Journal(world.bank).head(), entries[2]
    for moment in ("monday", "3", monday.time.isoformat()):
        assert listed(run, "--at", moment) == ["law", "medicine"]
        document = json.loads(run("show", "law", "--at", moment, "--json")[1])
        assert (document[STANDING]["version"], document[STANDING]["state"], document[STANDING]["tags"]) == (
            2,
            "generated",
            [],
        )
        assert document[STANDING]["scores"] == {} and document[STANDING]["lineage"]["children"] == []
        assert [row["version"] for row in json.loads(run("log", "law", "--at", moment, "--json")[1])] == [2, 1]
        assert len(json.loads(run("log", "--at", moment, "--json")[1])) == 3
        assert run("show", "both", "--at", moment)[0] == 4
    naive = monday.time.replace(tzinfo=None).isoformat()
    assert listed(run, "--at", naive) == ["law", "medicine"]
    assert listed(run, "--at", (system_clock() + timedelta(days=1)).date().isoformat()) == listed(run)
    assert Journal(world.bank).head() == head


def test_the_log_without_a_name_and_with_a_filter_is_the_journal(world: World, run: Run):
    whole = json.loads(run("log", "--json")[1])
    assert whole == json.loads(run("audit", "--json")[1])
    assert [row["entry"] for row in whole] == list(range(Journal(world.bank).head()[0], 0, -1))
    tagged = json.loads(run("log", "law", "--action", "tag", "--json")[1])
    assert [(row["action"], row["name"]) for row in tagged] == [("tag", "law")]
    page = json.loads(run("audit", "--before", "6", "--limit", "2", "--json")[1])
    assert [row["entry"] for row in page] == [5, 4]
    assert run("audit", "--principal", "nobody")[1] == f"the journal of {world.bank.path} has no such entry\n"


def test_a_diff_tells_cards_and_scores_and_says_when_there_is_none(world: World, run: Run):
    found = json.loads(run("diff", "law@2", "law@3", "--card", "--json")[1])
    assert found["card"] == {"metrics.exact": {"kind": "added", "before": None, "after": 0.5}}
    assert found["scores"]["exact"]["after"] == 0.5
    assert run("diff", "law@2", "law@2")[1] == "law@2 and law@2 are equal\n"
    code, out, _ = run("diff", "law@1", "law@3")
    assert code == 0
    assert ("layers.0.up" in out, "metrics.exact" in out, "largest angle, degrees" in out) == (True, True, True)


# ---------------------------------------------------------------------------------------------------- cards


def test_the_schema_is_one_and_names_every_field_of_a_card():
    jsonschema.Draft202012Validator.check_schema(dict(CARD_SCHEMA))
    described = CARD_SCHEMA["properties"].keys()
    assert described == {item.name for item in fields(BlockCard)} - {"extra"} | {STANDING}


def test_the_schema_describes_everything_that_show_tells_of_every_version(world: World, run: Run):
    enrol()(world)
    for name in ("both", "hidden", "idle", "law", "medicine", "old"):
        for version in world.bank.history(name):
            document = json.loads(run("show", f"{name}@{version.number}", "--json")[1])
            jsonschema.validate(document, dict(CARD_SCHEMA), format_checker=jsonschema.FormatChecker())
            assert document[STANDING].keys() == CARD_SCHEMA["properties"][STANDING]["properties"].keys()
            assert card_of(document) == version.card


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 3),
        ("semantic_type", "rumour"),
        ("sensitivity", ""),
        ("ttl", 0),
        ("priority", -1),
        ("parents", [1]),
        ("metrics", {"a": "b"}),
    ],
)
def test_the_schema_refuses_what_a_card_refuses(field: str, value: Any, world: World):
    document = card_document(world.bank, "law") | {field: value}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, dict(CARD_SCHEMA))
    with pytest.raises(errors.ConfigError):
        card_of(document)


def test_fields_that_nobody_knows_survive_put_show_put_with_an_equal_digest(world: World, run: Run):
    extra = {"reviewed": {"by": ["me", "you"], "score": 0.1}, "zz_future": None, STANDING: {"of": "the card's own"}}
    store = GovernedStore(world.bank.path, principal=OWNER)
    version = store.put(block("law", 4.0, extra=extra, peft_config={"r": 2, "lora_alpha": 1}))
    Path("card.json").write_text(run("show", "law", "--json")[1])
    code, out, _ = run("put", "law", "card.json", "--json")
    assert (code, json.loads(out)[0]["digest"], json.loads(out)[0]["version"]) == (0, version.digest, version.number)
    assert run("tag", "law", "noted")[0] == 0
    # Under another name it is another card, with every field as it was.
    document = json.loads(Path("card.json").read_text())
    Path("card.json").write_text(json.dumps(document | {"name": "justice"}))
    assert run("put", "law", "card.json")[0] == 0
    assert world.bank.find("justice").card == replace(version.card, name="justice")


@pytest.mark.parametrize(
    "text", ["[]", "{", "{}", '{"name": 3, "domain": "", "base": ""}', '{"name": "\\ud800", "domain": "", "base": ""}']
)
def test_a_document_that_is_no_card_is_refused_as_such(text: str, world: World, run: Run):
    Path("card.json").write_text(text)
    code, _, err = run("put", "law", "card.json")
    assert (code, err.startswith("ConfigError: ")) == (2, True)


# ---------------------------------------------------------------------------------------------------- consent


@pytest.mark.parametrize(
    "arguments", [["expire", "old"], ["restore", "monday"], ["revoke", "ada"]], ids=lambda arguments: arguments[0]
)
def test_a_dangerous_verb_asks_and_where_nobody_answers_wants_yes(
    arguments: list[str], world: World, run: Run, monkeypatch: pytest.MonkeyPatch
):
    enrol(("ada", Role.READER))(world)
    head = Journal(world.bank).head()
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.endswith("Nobody is there to ask; say --yes\n")
    for answer in ("n\n", "\n", ""):
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        code, out, err = run(*arguments, "--json")
        assert (code, out) == (3, "")
        assert err.endswith("[y/N] nothing was changed\n")
    assert Journal(world.bank).head() == head
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    code, out, _ = run(*arguments, "--json")
    assert (code, bool(json.loads(out))) == (0, True)
    assert Journal(world.bank).head()[0] > head[0]


class Terminal(io.StringIO):
    """Somebody who answers."""

    def isatty(self) -> bool:
        return True


def test_a_sweep_and_a_collection_show_what_they_would_do_until_they_are_told_to(world: World, run: Run):
    Life(world.bank).expire("old")
    head, files = Journal(world.bank).head(), sorted((world.path / "bank" / "blobs").rglob("*"))
    told = json.loads(run("gc", "--json")[1])
    assert (told["done"], {item["reason"] for item in told["garbage"]}) == (False, {"its block is expired"})
    assert run("gc", "--dry-run")[1] == run("gc")[1]
    assert run("gc")[1].splitlines()[-1].endswith("to delete; nothing was changed, --yes does it")
    told = json.loads(run("sweep", "--archive-below", "1.5", "--json")[1])
    assert (told["done"], {move["to"] for move in told["moves"]}) == (False, {"archived"})
    assert "shared/idle" in [move["name"] for move in told["moves"]]
    assert (Journal(world.bank).head(), sorted((world.path / "bank" / "blobs").rglob("*"))) == (head, files)


def test_a_restore_that_is_only_tried_tells_what_differs(world: World, run: Run):
    head = Journal(world.bank).head()
    told = json.loads(run("restore", "monday", "--dry-run", "--json")[1])
    differs = {row["name"]: row for row in told["differs"]}
    assert (told["moment"], set(differs)) == (3, {"both", "hidden", "idle", "law", "old"})
    assert (differs["both"]["then"], differs["law"]["then"]["state"]) == (None, "generated")
    assert differs["law"]["now"]["tags"] == {"latest": 3, "stable": 1}
    assert Journal(world.bank).head() == head
    assert run("restore", str(head[0]), "--dry-run")[1] == f"nothing differs from entry {head[0]}\n"


# ---------------------------------------------------------------------------------------------------- governance


def test_the_first_enrolment_says_who_became_what_and_locks_nobody_out_who_made_it(world: World, run: Run):
    code, out, err = run("enrol", "ada", "--role", "owner")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "olga is a member: owner of *",
        "ada is a member: owner of *",
        "the bank had no members; olga is one because they enrolled the first, and all others are refused",
    ]
    out = run("enrol", "eve", "--role", "reader", "--scope", "team:legal")[1]
    assert out == "eve is a member: reader of team:legal\n"
    assert run("enrol", "bob")[1] == "bob is a member: without a role\n"
    assert run("protect", "good", world.file("policy.json"))[0] == 0
    assert run("names", "--as", "mallory")[0] == 3


def test_one_of_a_kind_is_told_in_the_singular(world: World, run: Run):
    (world.path / "one.json").write_text(json.dumps({"exact": 0.9}))
    told = [
        run("protect", "good", world.file("policy.json")), run("record", "law", world.file("one.json")),
        run("use", "law"), run("use", "law", "--count", "2"), run("sweep"), run("verify", "--digests"),
    ]  # fmt: skip
    assert [out.split(": ")[0].split(";")[0].strip().splitlines()[-1] for _, out, _ in told] == [
        "tag good is protected by 1 bound", "1 figure recorded for law", "law was used 1 time", "law was used 2 times",
        "0 moves", "sound",
    ]  # fmt: skip


def test_a_token_is_read_from_the_environment_alone(world: World, run: Run, monkeypatch: pytest.MonkeyPatch):
    secret = json.loads(run("enrol", OWNER, "--role", "owner", "--with-token", "--json")[1])["token"]
    assert run("names")[2].startswith(
        "AccessDenied: 'olga' may not read the bank: the token is not theirs; set PMEMX_TOKEN"
    )
    monkeypatch.setenv("PMEMX_TOKEN", secret)
    assert run("names")[0] == 0
    assert secret not in run("audit", "--json")[1] + run("members", "--json")[1]


def test_a_principal_sees_only_what_they_may_read(world: World, run: Run):
    enrol(("ada", None))(world)
    Members(world.bank).grant("ada", Role.READER, "shared/medicine")
    assert listed(run, "--as", "ada") == ["medicine"]
    assert run("show", "law", "--as", "ada")[0] == 3
    assert run("audit", "--as", "ada")[0] == 3
    assert run("archive", "medicine", "--as", "ada")[0] == 3
    document = json.loads(run("show", "medicine", "--as", "ada", "--json")[1])
    assert [child["name"] for child in document[STANDING]["lineage"]["children"]] == []


def test_a_protected_tag_falls_when_figures_break_its_policy_and_people_are_told(world: World, run: Run):
    world.bank.tag("law@1", "prod")
    code, out, _ = run("record", "law@1", world.file("scores.json"))
    assert code == 0
    assert out.splitlines()[0] == "2 figures recorded for law@1"
    assert out.splitlines()[1].startswith(
        "tag prod is withdrawn: an evaluation of version 1 breaks what 'prod' demands"
    )


@pytest.mark.parametrize(
    "scores", ['{"exact": "good"}', '{"exact": {"low": 1}}', '{"exact": {"value": true}}', '{"exact": NaN}', "{}"]
)
def test_a_score_that_is_no_number_is_refused(scores: str, world: World, run: Run):
    Path("scores.json").write_text(scores)
    code, out, err = run("record", "law", "scores.json")
    assert (code, out, err.startswith("ConfigError: ")) == (2, "", True)


def test_confidential_blocks_leave_redacted_and_every_leaving_is_noted(world: World, run: Run):
    code, out, _ = run("export", "out", "hidden", "medicine", "--redact", "--json")
    assert (code, len(json.loads(out))) == (0, 2)
    noted = Journal(world.bank).entries(limit=2)
    assert [(entry.action, entry.name, entry.detail["redacted"]) for entry in noted] == [
        ("export", "medicine", True),
        ("export", "hidden", True),
    ]
    assert all(entry.detail["to"] == "out" for entry in noted)


def test_a_push_to_the_hub_names_the_repository_and_is_private_unless_said(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
):
    asked: list[tuple[Any, ...]] = []

    def push(bank: Bank, references: list[str], repo_id: str, *, private: bool, redacted: bool) -> Pushed:
        asked.append((bank, references, repo_id, private, redacted))
        return Pushed("https://hub/commit/1", tuple(references))

    monkeypatch.setattr("pmemx.exchange.hub.push_to_hub", push)
    code, out, _ = run("push", "hub:me/law", "law", "medicine", "--redact", "--json")
    assert (code, json.loads(out)) == (0, {"url": "https://hub/commit/1", "references": ["law", "medicine"]})
    assert run("push", "hub:me/law", "law", "--public")[0] == 0
    assert [one[1:] for one in asked] == [
        (["law", "medicine"], "me/law", True, True),
        (["law"], "me/law", False, False),
    ]


def test_the_ledger_of_every_day_is_not_that_of_a_folder_that_was_named(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PMEMX_DATABASE", "sqlite+nothing://secret@host/db")
    assert run("names", "--bank", world.file("other")) == (0, "physics\n", "")
    code, _, err = run("names")
    assert (code, "secret" in err) == (2, False)
    assert run("names", "--database", "")[0] == 0


# ---------------------------------------------------------------------------------------------------- hostile text


def test_what_a_card_says_is_shown_and_never_obeyed(world: World, run: Run):
    store = GovernedStore(world.bank.path, principal=OWNER)
    obeyed = "\x1b[2J\x1b]0;owned\x07 \x9b31m \u202egnp.exe \u2028 \r\n[link=http://x]"
    nasty = replaced(
        block(HOSTILE, 1.0, made_by=obeyed, licence=obeyed, recipe={obeyed: obeyed}), domain=obeyed, base_name=obeyed
    )
    store.put(nasty, message=obeyed)
    store.tag(HOSTILE, "[bold]x", reason=obeyed)
    store.put(replaced(nasty, metrics={obeyed: 1.0}))
    world.bank.tag(HOSTILE, "=cmd")
    for arguments in (
        ["list"],
        ["show", HOSTILE],
        ["log", HOSTILE],
        ["audit"],
        ["names"],
        ["diff", f"{HOSTILE}@1", HOSTILE],
        ["lineage", HOSTILE],
    ):
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        assert HOSTILE in out or arguments[0] in ("log", "diff")  # which are about one name
        assert not [c for c in out if c != "\n" and unicodedata.category(c) in ("Cc", "Zl", "Zp")]
        assert "\u202e" not in out
    assert "[bold]x" in run("log", HOSTILE)[1]
    assert visible(obeyed) in run("list")[1]
    (row,) = [row for row in json.loads(run("list", "--json")[1]) if row["name"] == HOSTILE]
    assert (row["domain"], row["tags"]) == (obeyed, ["=cmd"])


def test_an_error_that_quotes_a_card_commands_no_terminal(world: World, run: Run):
    Path("card.json").write_text(json.dumps({"name": "x\x1b[2J", "domain": "", "base": "", "sensitivity": "\x1b[31m"}))
    code, _, err = run("put", "law", "card.json")
    assert (code, "\x1b" in err) == (2, False)
    code, _, err = run("show", "\x1b[2J")
    assert (code, "\x1b" in err, "\\x1b[2J" in err) == (4, False, True)


# ---------------------------------------------------------------------------------------------------- processes


def test_verbs_that_read_no_weights_import_no_torch(world: World):
    light = [verb for verb, case in CASES.items() if not case.torch and not case.serves]
    calls = [[verb, CASES[verb].arguments(world)] for verb in light]
    code = (
        "import contextlib, io, sys\n"
        "from pmemx.cli import main\n"
        "guilty = []\n"
        f"for verb, arguments in {calls!r}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "        main(['bank', *arguments])\n"
        "    if sys.modules.keys() & {'torch', 'transformers', 'lightning', 'hydra', 'numpy'}:\n"
        "        guilty.append(verb); break\n"
        "print(guilty)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_process_ends_with_the_code_and_writes_plain_text_in_any_encoding(world: World):
    GovernedStore(world.bank.path, principal=OWNER).put(block("médecine ☃", 1.0))
    plain = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = fresh(["bank", "list"], NO_COLOR="1", **plain)
    assert (done.returncode, done.stderr, "m\\xe9decine \\u2603" in done.stdout) == (0, "", True)
    assert done.stdout.isascii() and "\x1b" not in done.stdout
    assert "médecine ☃" in [row["name"] for row in json.loads(fresh(["bank", "list", "--json"], **plain).stdout)]
    done = fresh(["bank", "show", "☃"], **plain)
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (4, "", False)


@pytest.mark.parametrize("arguments", [["audit", "--limit", "999"], ["audit", "--json", "--limit", "999"], ["schema"]])
def test_a_pipe_that_is_closed_early_is_no_error(arguments: list[str], world: World):
    code = f"import sys; from pmemx.cli import main; sys.exit(main({['bank', *arguments]!r}))"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert done.stdout is not None and done.stderr is not None
    done.stdout.close()
    assert (done.stderr.read(), done.wait(60)) == ("", 0)
    done.stderr.close()


def test_a_terminal_gets_a_table_of_its_width_and_no_colour_where_none_is_wanted(world: World):
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 60, 0, 0))
    code = "import sys; from pmemx.cli import main; sys.exit(main(['bank', 'list']))"
    env = {key: value for key, value in os.environ.items() if key != "COLUMNS"} | {
        "PYTHONPATH": str(ROOT),
        "NO_COLOR": "1",
        "TERM": "xterm",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, stdin=follower, stdout=follower, stderr=subprocess.PIPE
    )
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal whose other side is closed
        while part := os.read(leader, 65536):
            shown += part
    os.close(leader)
    assert (done.returncode, done.stderr) == (0, b"")
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())
    assert max(len(line.rstrip("\r")) for line in text.split("\n")) <= 60
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", shown.decode())


def test_a_checkout_of_a_version_of_format_1_holds_the_bytes_of_its_digest(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    place = shutil.copytree(Path(__file__).parent / "store" / "golden" / "format_one", tmp_path / "bank")
    assert run("migrate", "--bank", str(place))[0] == 0
    code, told, _ = run("checkout", "--bank", str(place), "finance@1", str(tmp_path / "out"))
    found = Bank(place).find("finance@1").digest
    assert code == 0 and found[:12] in told
    assert hashlib.sha256((tmp_path / "out" / "manifest.json").read_bytes()).hexdigest() == found
