"""Repositories of the Hub: folders that PEFT loads, cards that the Hub's parser reads, and a bank to pull from."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from pmemx.core.card import Sensitivity
from pmemx.core.errors import AccessDenied, ConfigError, CorruptBlock, StorageError
from pmemx.core.event import Action
from pmemx.core.metric import Figure
from pmemx.core.peft_folder import read_peft_folder
from pmemx.exchange.hub import opened_repository, pull_from_hub, push_to_hub, write_hub_folder
from pmemx.store.bank import Bank
from pmemx.store.governed import GovernedStore
from pmemx.store.journal import Journal
from tests.exchange.banks import block, snapshot, store
from tests.exchange.fake_hub import running
from tests.exchange.test_transfer import digests, record, scores

REPO = "owner/experts"
NAMES = ("law", "0", "../tax", "médecine | ☃", "lora_A", "a`b", "<script>alert(1)</script>", "x@prod")


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def here(tmp_path: Path) -> GovernedStore:
    return store(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> GovernedStore:
    return store(tmp_path / "there")


@pytest.fixture
def adapters(tmp_path: Path) -> dict[str, Path]:
    """Two folders as PEFT saved them."""
    saved = {}
    for name, expert in {
        "law": {"r": 4, "target_modules": ["q_proj"]},
        "tax": {"r": 2, "target_modules": "all-linear"},
    }.items():
        model = get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", **expert))
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(str(tmp_path / name))
        saved[name] = tmp_path / name
    return saved


def test_eight_blocks_go_to_a_folder_and_come_back_whole(
    here: GovernedStore, there: GovernedStore, tmp_path: Path
) -> None:
    for number, name in enumerate(NAMES, 1):
        here.put(block(name, 1.0, (number,)), message="first")
        here.put(block(name, 2.0, (number, 2)), message="second")
        here.tag(f"{name}@1", "prod")
        record(here.bank, f"{name}@2", exact=Figure(0.5, 0.25, 0.75, 40, 8))
    assert write_hub_folder(here.bank, NAMES, tmp_path / "repo", repo_id=REPO) == tuple(sorted(NAMES))
    made = pull_from_hub(there.bank, tmp_path / "repo")
    assert [one.version.name for one in made] == sorted(NAMES)
    for name in NAMES:
        assert there.history(name) == here.history(name)
        assert there.tags(name) == {"prod": 1}
        assert scores(there.bank, f"{name}@2") == {"exact": Figure(0.5, 0.25, 0.75, 40, 8)}
    assert there.verify() == ()
    assert [one.changed for one in pull_from_hub(there.bank, tmp_path / "repo")] == [False] * 8
    exported = Journal(here.bank).entries(action=Action.EXPORT)
    assert {entry.detail["to"] for entry in exported} == {f"hub:{REPO}"}


def test_peft_loads_every_folder_with_the_tensors_that_it_saved(
    here: GovernedStore, adapters: dict[str, Path], tmp_path: Path
) -> None:
    for name, folder in adapters.items():
        here.put(read_peft_folder(folder, name=name, base="b" * 64, base_name="owner/tiny"))
    write_hub_folder(here.bank, ["law", "tax"], tmp_path / "repo", repo_id=REPO)
    index = json.loads((tmp_path / "repo" / "adapters" / "index.json").read_text())
    for name, saved in adapters.items():
        folder = index[name]["folder"]
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            assert (tmp_path / "repo" / "adapters" / folder / file).read_bytes() == (saved / file).read_bytes()
        model = PeftModel.from_pretrained(llama(), str(tmp_path / "repo"), subfolder=f"adapters/{folder}")
        expected = PeftModel.from_pretrained(llama(), str(saved))
        assert model.state_dict().keys() == expected.state_dict().keys()
        for key, tensor in expected.state_dict().items():
            assert torch.equal(model.state_dict()[key], tensor)


def test_the_readme_is_a_model_card(here: GovernedStore, tmp_path: Path) -> None:
    here.put(block("law", licence="Apache-2.0", semantic_type="skill", made_by="pmemx 1", created="2027-01-01"))
    here.put(block("tax | 1\n".strip(), licence="apache-2.0"))
    here.tag("law", "prod")
    record(here.bank, "law", exact=Figure(0.75, 0.5, 0.875, 40, 8))
    write_hub_folder(here.bank, ["law", "tax | 1"], tmp_path / "repo", repo_id=REPO)
    card = ModelCard.load(tmp_path / "repo" / "README.md")
    assert card.data.base_model == ["owner/tiny"]
    assert (card.data.library_name, card.data.tags) == ("peft", ["pmemx", "lora", "skill"])
    assert card.data.license == "other"  # two spellings are two licences
    assert "| law | 1 | exact | 0.75 | 0.5 to 0.875 | 40 | 8 |" in card.text
    assert f"| law | 1 | {here.find('law').digest[:12]} | law | owner/tiny | 2 |" in card.text
    assert "prod → 1" in card.text
    assert r"| tax \| 1 | 1 |" in card.text
    assert here.bank.ledger.bank_id() in card.text


@pytest.mark.parametrize(
    ("licences", "expected"),
    [(["MIT"], "mit"), ([""], None), (["my own terms"], "other"), (["mit", "cc0-1.0"], "other")],
)
def test_the_licence_is_one_that_the_hub_knows(
    here: GovernedStore, tmp_path: Path, licences: list[str], expected: str | None
) -> None:
    for number, licence in enumerate(licences):
        here.put(block(f"b{number}", licence=licence))
    names = write_hub_folder(here.bank, [f"b{n}" for n in range(len(licences))], tmp_path / "repo", repo_id=REPO)
    assert len(names) == len(licences)
    assert ModelCard.load(tmp_path / "repo" / "README.md").data.license == expected


def test_a_name_cannot_write_the_readme(here: GovernedStore, tmp_path: Path) -> None:
    for name in ("<img src=x onerror=alert(1)>", "[click](javascript:alert(1))", "--- license: mit"):
        here.put(block(name, licence="x\n---\nlicense: mit", domain="a\n\n# b"))
    write_hub_folder(here.bank, here.names(), tmp_path / "repo", repo_id=REPO)
    card = ModelCard.load(tmp_path / "repo" / "README.md")
    assert card.data.license == "other"
    assert "<img" not in card.text
    assert "[click](" not in card.text
    assert "\n# b" not in card.text


def test_every_file_is_in_the_checksums_and_nothing_tells_who_was_logged_in(
    here: GovernedStore, tmp_path: Path
) -> None:
    private = GovernedStore(here.path, principal="alice-at-home")
    private.put(block("law"))
    write_hub_folder(private.bank, ["law"], tmp_path / "repo", repo_id=REPO)
    done = subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=tmp_path / "repo", capture_output=True)
    assert done.returncode == 0, done.stderr
    files = {str(path.relative_to(tmp_path / "repo")) for path in (tmp_path / "repo").rglob("*") if path.is_file()}
    listed = {line.split("  ")[1] for line in (tmp_path / "repo" / "SHA256SUMS").read_text().splitlines()}
    assert files == listed | {"SHA256SUMS"}
    assert not [path for path, data in snapshot(tmp_path / "repo").items() if b"alice-at-home" in data]


def test_a_folder_with_something_in_it_is_left_alone(here: GovernedStore, tmp_path: Path) -> None:
    here.put(block())
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="holds something already"):
        write_hub_folder(here.bank, ["law"], tmp_path / "repo", repo_id=REPO)
    assert snapshot(tmp_path / "repo") == {"thesis.tex": b"mine"}


def test_two_blocks_that_would_share_a_name_are_pushed_apart(here: GovernedStore, tmp_path: Path) -> None:
    here.put(block())
    store(here.path, namespace="user:alice").put(block())
    with pytest.raises(ConfigError, match="user:alice/law and shared/law would share a name"):
        write_hub_folder(here.bank, ["law", "user:alice/law"], tmp_path / "repo", repo_id=REPO)
    with pytest.raises(ConfigError, match="name one block"):
        write_hub_folder(here.bank, [], tmp_path / "repo2", repo_id=REPO)


def test_a_confidential_block_goes_redacted_and_comes_back_without_asking_again(
    here: GovernedStore, there: GovernedStore, tmp_path: Path
) -> None:
    here.put(block(sensitivity=Sensitivity.CONFIDENTIAL.value, made_by="alice"))
    with pytest.raises(AccessDenied, match="only redacted"):
        write_hub_folder(here.bank, ["law"], tmp_path / "repo", repo_id=REPO)
    write_hub_folder(here.bank, ["law"], tmp_path / "repo", repo_id=REPO, redacted=True)
    assert "made\\_by" in (tmp_path / "repo" / "README.md").read_text()
    pull_from_hub(there.bank, tmp_path / "repo")
    assert there.find("law").card.extra["redacted"]["original"] == here.find("law").digest
    assert not [path for path, data in snapshot(tmp_path / "repo").items() if b"alice" in data]


@pytest.mark.parametrize("what", ["weights", "manifest", "ledger", "journal"])
def test_nothing_is_taken_from_a_repository_that_was_tampered_with(
    here: GovernedStore, there: GovernedStore, tmp_path: Path, what: str
) -> None:
    import sqlite3

    here.put(block("law"))
    here.put(block("tax"))
    write_hub_folder(here.bank, ["law", "tax"], tmp_path / "repo", repo_id=REPO)
    bank = tmp_path / "repo" / "bank"
    if what in ("weights", "manifest"):
        found = Bank(bank).found("tax")
        digest = found.weights if what == "weights" else found.version.digest
        file = bank / "blobs" / "sha256" / digest[:2] / digest
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    else:
        with sqlite3.connect(bank / "bank.db") as connection:
            change = {"ledger": "UPDATE versions SET message = 'x'", "journal": "UPDATE journal SET principal = 'x'"}
            connection.execute(change[what])
        connection.close()
    before = snapshot(tmp_path / "repo")
    with pytest.raises(CorruptBlock, match="nothing was taken"):
        pull_from_hub(there.bank, tmp_path / "repo", ["law"])
    assert not there.path.exists()
    assert snapshot(tmp_path / "repo") == before


def test_to_look_into_a_folder_writes_nothing_into_it(here: GovernedStore, tmp_path: Path) -> None:
    here.put(block(sensitivity=Sensitivity.CONFIDENTIAL.value))
    write_hub_folder(here.bank, ["law"], tmp_path / "repo", repo_id=REPO, redacted=True)
    before = snapshot(tmp_path / "repo")
    with opened_repository(tmp_path / "repo") as held:
        held.tag("law", "prod")
    assert snapshot(tmp_path / "repo") == before
    assert not list((tmp_path / "repo").rglob("*-wal"))


def test_a_place_without_a_repository_is_said_to_be_one(there: GovernedStore, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"has no bank/bank\.db"):
        pull_from_hub(there.bank, tmp_path)
    with pytest.raises(StorageError, match=r"the Hub refuses 'owner/nowhere-4711'.*HF_HUB_OFFLINE"):
        pull_from_hub(there.bank, "hub:owner/nowhere-4711")
    with pytest.raises(StorageError, match="the Hub refuses"):
        pull_from_hub(there.bank, "no such: name")


@dataclass
class Recorder(HfApi):
    """An API that keeps what it was asked, and the folder as it was then."""

    public: bool = False
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    files: set[str] = field(default_factory=set)

    def create_repo(self, repo_id: str, **settings: Any) -> Any:
        self.calls.append(("create_repo", {"repo_id": repo_id, **settings}))

    def model_info(self, repo_id: str, **settings: Any) -> Any:
        return SimpleNamespace(private=not self.public)

    def create_branch(self, repo_id: str, **settings: Any) -> Any:
        self.calls.append(("create_branch", {"repo_id": repo_id, **settings}))

    def upload_folder(self, **settings: Any) -> Any:
        self.calls.append(("upload_folder", settings))
        folder = settings["folder_path"]
        self.files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        return SimpleNamespace(commit_url="https://hub/commit/1")


def test_a_push_uploads_the_folder_in_one_commit(here: GovernedStore) -> None:
    here.put(block())
    api = Recorder()
    done = push_to_hub(here.bank, ["law"], REPO, token="hf_x", revision="v2", api=api)
    assert (done.url, done.references) == ("https://hub/commit/1", ("law",))
    assert [verb for verb, _ in api.calls] == ["create_repo", "create_branch", "upload_folder"]
    assert api.calls[0][1] == {"repo_id": REPO, "private": True, "exist_ok": True, "token": "hf_x"}
    upload = api.calls[2][1]
    assert (upload["repo_id"], upload["token"], upload["revision"]) == (REPO, "hf_x", "v2")
    assert upload["delete_patterns"] == ["bank/*", "adapters/*"]
    assert {"README.md", "SHA256SUMS", "bank/bank.db", "adapters/index.json"} <= api.files
    assert len([path for path in api.files if path.startswith("bank/blobs/sha256/")]) == 2
    assert not upload["folder_path"].exists()


def test_a_private_push_to_a_public_repository_takes_nothing_out_of_the_bank(
    here: GovernedStore, tmp_path: Path
) -> None:
    here.put(block())
    api = Recorder(public=True)
    with pytest.raises(AccessDenied, match="is public, the push was to be private"):
        push_to_hub(here.bank, ["law"], REPO, folder=tmp_path / "repo", api=api)
    assert Journal(here.bank).entries(action=Action.EXPORT) == ()
    assert not (tmp_path / "repo").exists()
    push_to_hub(here.bank, ["law"], REPO, private=False, folder=tmp_path / "repo", api=api)
    assert (tmp_path / "repo" / "README.md").is_file()


def test_a_push_and_a_pull_over_http(here: GovernedStore, there: GovernedStore, tmp_path: Path) -> None:
    here.put(block(fill=1.0))
    here.put(block("tax"))
    here.tag("law", "prod")
    script = Path(__file__).with_name("push_and_pull.py")
    with running() as hub:
        environment = os.environ | {
            "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_test",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": os.pathsep.join(sys.path), "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        words = [sys.executable, str(script), str(here.path), str(there.path), REPO]
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["url"].startswith(f"{hub.url}/{REPO}/commit/")
    assert (told["synced"], told["pulled"]) == ([True, False], [2])
    assert "the Hub refuses 'owner/other'" in told["missing"]
    assert f"the Hub refuses '{REPO}'" in told["unreachable"]
    assert hub.private[REPO] is True
    begun, first, second = hub.commits[REPO]
    assert {path.split("/")[0] for path in first} == {*begun, "README.md", "SHA256SUMS", "adapters", "bank"}
    assert len([path for path in first if path.startswith("adapters/tax")]) == 4
    assert [path for path in second if path.startswith("adapters/tax")] == []
    assert begun.items() <= second.items()  # what no push wrote stays
    assert digests(there) == digests(here)
    assert len(digests(there)) == 2
    assert (here.verify(), there.verify()) == ((), ())
