"""The main job at scale=smoke, as a newcomer runs it: every part works together, and no number means anything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from pmemx.base_model.bundled import FOLDER
from pmemx.core.bank import ExpertBank
from pmemx.core.evidence import Evidence
from pmemx.runtime.attach import attached
from pmemx.store.governed import GovernedStore

ROOT = Path(__file__).parents[2]
BANK = "outputs/smoke/bank_seed0"


def pmemx(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pmemx.cli", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("newcomer")
    output = pmemx(folder, "run", "experiments=quickstart", "scale=smoke", "hydra.run.dir=first")
    (folder / "output.txt").write_text(output)
    return folder


def test_the_run_folder_holds_records_and_a_report(folder):
    record = json.loads((folder / "first" / "record.json").read_text())
    assert set(record["seconds"]) == {"distill", "train_gate", "evaluate", "export"}
    # Three experts, and one LoRA that learns the three domains in sequence.
    assert [block["version"] for block in record["blocks"] if block["name"] == "sequential"] == [1, 2, 3]
    assert record["figures"]["exact_match/oracle/law/test"]["n"] == 8
    report = (folder / "first" / "report.html").read_text()
    assert "<svg" in report and "http://" not in report.replace("http://www.w3.org", "")
    assert (folder / "first" / "report.md").exists() and (folder / "first" / "metrics.csv").exists()


def test_a_smoke_run_says_that_it_is_one_wherever_it_shows_a_number(folder):
    for path in ("output.txt", "first/report.html", "first/report.md"):
        assert "no number here means anything" in (folder / path).read_text(), path


def test_what_the_run_measured_of_each_version_is_kept_with_it_and_shown(folder):
    figures = json.loads((folder / "first" / "record.json").read_text())["figures"]
    bank = str(folder / BANK)
    expert, adapter = (
        json.loads(pmemx(folder, "bank", "--bank", bank, "show", name, "--json"))["standing"]["scores"]
        for name in ("law", "sequential@2")
    )
    assert expert == {
        "exact_match/own_domain": figures["exact_match/expert/law/law/test"],
        "exact_match/all_domains": figures["exact_match/expert/law/all_domains/test"],
        "token_loss/own_domain": figures["token_loss/expert/law/law/test"],
        "forgetting_general/loss": figures["forgetting_general/loss/expert/law"],
        "forgetting_general/kl": figures["forgetting_general/kl/expert/law"],
    }
    assert adapter == {
        "exact_match/domain_learnt_last": figures["sequential/exact/sequential/R/2/finance"],
        "exact_match/domains_learnt": figures["sequential/exact/sequential/seen/2"],
        "forgetting_general/loss": figures["forgetting_general/loss/sequential/1"],
        "forgetting_general/kl": figures["forgetting_general/kl/sequential/1"],
    }
    told = json.loads(pmemx(folder, "bank", "--bank", bank, "diff", "sequential@1", "sequential", "--json"))
    assert set(told["recorded"]) >= {"forgetting_general/kl"}


def test_an_expert_of_a_growing_bank_answers_with_the_same_bits_under_oracle_routing(folder):
    evidence = Evidence.read(folder / "first" / "evidence.jsonl")
    assert evidence.sequence == ("law", "finance", "medicine")
    for learnt, domain in enumerate(evidence.sequence):
        stages = [evidence.rows(f"bank_oracle/{stage}", domain) for stage in range(learnt, 3)]
        assert all([row.nats for row in rows] == [row.nats for row in stages[0]] for rows in stages)
        before = evidence.rows(f"bank_oracle/{learnt - 1}", domain) if learnt else ()
        base = evidence.rows("base", domain)
        assert not before or [row.hits for row in before] == [row.hits for row in base]


def test_general_text_under_oracle_routing_is_the_base_bit_for_bit(folder):
    evidence = Evidence.read(folder / "first" / "evidence.jsonl")
    rows, base = evidence.rows("oracle", "general"), evidence.rows("base", "general")
    assert rows and [row.nats for row in rows] == [row.nats for row in base]
    assert all(row.kl == 0 for row in rows)


def test_the_exported_experts_work_in_peft_as_in_the_bank(folder):
    model = AutoModelForCausalLM.from_pretrained(FOLDER).eval()
    ids = torch.arange(300, 340).view(2, 20)
    store = GovernedStore(str(folder / BANK))
    for name in ("law", "finance", "medicine"):
        with attached(model, ExpertBank([store.get(name)]), weights=[1.0]), torch.no_grad():
            ours = model(ids).logits
        index = json.loads((folder / "first" / "export" / "index.json").read_text())
        plain = AutoModelForCausalLM.from_pretrained(FOLDER).eval()
        with torch.no_grad():
            theirs = (
                PeftModel.from_pretrained(plain, folder / "first" / "export" / index[name]["folder"]).eval()(ids).logits
            )
        assert (ours - theirs).abs().max() < 1e-5


def test_what_is_distilled_already_is_not_distilled_again(folder):
    output = pmemx(folder, "run", "experiments=quickstart", "scale=smoke", "hydra.run.dir=second", "plan=[distill]")
    assert output.count("already distilled") >= 3
    store = GovernedStore(str(folder / BANK))
    assert [version.number for version in store.history("law")] == [1]
    pmemx(folder, "run", "experiments=quickstart", "scale=smoke", "plan=[distill]", "trainer.lr=0.001")
    assert [version.number for version in store.history("law")] == [1, 2]


def test_the_report_is_made_again_from_the_records(folder):
    before = (folder / "first" / "report.html").read_bytes()
    pmemx(folder, "report", "first")
    assert (folder / "first" / "report.html").read_bytes() == before


def test_real_domains_run_at_smoke_scale(tmp_path):
    data = Path(os.environ.get("PMEMX_REAL_DATA", ROOT.parent / "shared"))
    if not (data / "data" / "domains").exists():
        pytest.skip(f"no real data at {data}; set PMEMX_REAL_DATA to a folder with data/ and models/")
    settings = [f"base_model.path={data / 'models' / 'stories260k'}", f"data.root={data / 'data'}"]
    pmemx(tmp_path, "run", "experiments=real_domains", "scale=smoke", "hydra.run.dir=run", *settings)
    figures = json.loads((tmp_path / "run" / "record.json").read_text())["figures"]
    assert 1.0 < figures["token_loss/base/legal/test"]["value"] < 12.0
    assert {name.split("/")[3] for name in figures if name.startswith("specialisation/loss/matrix/")} == {
        "legal",
        "finance",
        "summarisation",
    }
