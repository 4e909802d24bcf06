"""Opening a finished run gives what it measured, and every reason why it cannot be opened is a sentence."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import pmemx
from pmemx.core.errors import ConfigError, CorruptBlock, DataError, IncompatibleBlock, PmemxError, UnknownBlock
from pmemx.gate.tracking import TrackingGate

ROOT = Path(__file__).parents[2]
QUESTION = "Which judge ruled on Orsted Appeal?"


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """The folder in which a small run was started; the run's own is outputs/quickstart/first."""
    folder = tmp_path_factory.mktemp("start")
    settings = ["plan=[distill,train_gate]", "~stage.distill.curricula.sequential", "data.domains=[law,finance]"]
    run = ["run", "experiments=quickstart", "scale=smoke", *settings, "hydra.run.dir=outputs/quickstart/first"]
    done = subprocess.run(
        [sys.executable, "-m", "pmemx.cli", *run],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


@pytest.fixture
def copied(start: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the run's folder, with some of its files edited: texts to replace, by file."""

    def copy(name: str = "run", **edits: dict[str, str]) -> Path:
        folder = tmp_path / "runs" / name
        shutil.copytree(start / "outputs/quickstart/first", folder)
        for file, replacements in edits.items():
            path = folder / FILES[file]
            text = path.read_text()
            for old, new in replacements.items():
                assert old in text, f"{file} does not say {old!r}"
                text = text.replace(old, new)
            path.write_text(text)
        return folder

    return copy


FILES = {
    "record": "record.json",
    "config": ".hydra/config.yaml",
    "hydra": ".hydra/hydra.yaml",
    "card": "gates/gate.json",
    "blocks": "blocks.json",
}
FULL = {"scale: smoke": "scale: full"}


def placed(folder: Path, path: str) -> Path:
    """A run whose settings say that its bank is at this path."""
    config = OmegaConf.load(folder / FILES["config"])
    OmegaConf.update(config, "store.path", path)
    OmegaConf.save(config, folder / FILES["config"])
    return folder


def created(time: str, of: Path) -> dict[str, str]:
    return {json.loads((of / "outputs/quickstart/first/record.json").read_text())["created"]: time}


def test_a_run_gives_its_experts_and_its_gate_as_they_were_trained(start):
    folder = start / "outputs/quickstart/first"
    run = pmemx.load_run(folder)
    blocks = json.loads((folder / "blocks.json").read_text())["experts"]
    assert run.bank.names == ("law", "finance")
    assert [resident.version for resident in run.bank.residents] == [blocks["law"][-1], blocks["finance"][-1]]
    assert isinstance(run.gate, TrackingGate) and not run.gate.training
    assert run.gate.get_buffer("learnt").tolist()[1:] == [True, True]
    assert repr(run) == f"LoadedRun({str(folder)!r}: TrackingGate over law, finance)"


def test_an_answer_says_which_version_spoke_and_leaves_the_base_alone(start):
    run = pmemx.load_run(start / "outputs/quickstart/first")
    ids = run.tokenizer(QUESTION, return_tensors="pt")["input_ids"]
    before = run.model(ids).logits
    reply = run.answer(QUESTION, max_new_tokens=3)
    assert str(reply) == reply.text != ""
    assert [(share.block, share.version) for share in reply.provenance.shares] == [
        ("law", run.bank.residents[0].version)
    ]
    assert torch.equal(run.model(ids).logits, before)
    with run.attached():
        assert not torch.equal(run.model(ids).logits, before)
        with pytest.raises(PmemxError, match="a bank is attached to this model already"):
            run.answer(QUESTION)


def test_two_runs_do_not_share_a_model(start):
    one, other = (pmemx.load_run(start / "outputs/quickstart/first") for _ in range(2))
    with one.attached(), other.attached():
        assert one.model is not other.model


def test_another_gate_of_the_run_is_taken_by_its_name(start):
    assert type(pmemx.load_run(start / "outputs/quickstart/first", gate="oracle").gate).__name__ == "OracleGate"
    with pytest.raises(ConfigError, match="has no gate 'oracel'; did you mean 'oracle'"):
        pmemx.load_run(start / "outputs/quickstart/first", gate="oracel")


def test_paths_of_the_settings_hold_from_where_the_run_was_started(copied, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert len(pmemx.load_run(copied()).bank) == 2


def test_what_hydra_said_of_a_run_is_known_after_it(copied, start):
    place = Path(pmemx.load_run(start / "outputs/quickstart/first").store.path).relative_to(start)
    assert len(pmemx.load_run(placed(copied(), f"${{hydra:runtime.cwd}}/{place}")).bank) == 2


def test_a_folder_of_runs_gives_the_newest_that_is_finished_at_full_scale(copied, start):
    runs = copied("2", hydra=FULL, record=created("2026-02-02T00:00:00+00:00", start)).parent
    copied("1", hydra=FULL, record=created("2026-01-01T00:00:00+00:00", start))
    copied("3", record=created("2026-03-03T00:00:00+00:00", start))  # smoke
    copied("4", hydra=FULL, record=created("2026-04-04T00:00:00+00:00", start) | {'"train_gate": ': '"export": '})
    (copied("5", hydra=FULL) / "record.json").unlink()
    assert pmemx.load_run(runs).folder == runs / "2"
    newest = copied("sweep/0", hydra=FULL, record=created("2026-05-05T00:00:00+00:00", start))
    assert pmemx.load_run(runs).folder == newest


def test_a_folder_without_a_finished_run_says_which_there_are(copied):
    runs = copied("smoke").parent
    with pytest.raises(DataError, match=r"none of the 1 runs in .* is finished at scale=full; .*runs/smoke"):
        pmemx.load_run(runs)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="is no run and holds none"):
        pmemx.load_run(tmp_path)
    with pytest.raises(DataError, match="there is no folder"):
        pmemx.load_run(tmp_path / "nowhere")


def test_an_unfinished_run_says_what_it_lacks(copied):
    begun = copied("begun")
    (begun / "record.json").unlink()
    with pytest.raises(DataError, match="has finished no stage yet"):
        pmemx.load_run(begun)
    without_experts = copied("empty")
    (without_experts / "blocks.json").unlink()
    with pytest.raises(DataError, match=r"made no experts \(its plan is distill, train_gate; not done: nothing\)"):
        pmemx.load_run(without_experts)
    untrained = copied("untrained")
    (untrained / "gates/gate.json").unlink()
    with pytest.raises(ConfigError, match="gate 'gate' is not trained in this run"):
        pmemx.load_run(untrained)


def test_an_expert_that_the_bank_lacks_is_named(copied, start):
    law = json.loads((start / "outputs/quickstart/first/blocks.json").read_text())["experts"]["law"][0]
    folder = copied(blocks={law: "0" * 64})
    with pytest.raises(
        UnknownBlock, match="made expert 'law' as version 000000000000, but its bank does not hold that"
    ):
        pmemx.load_run(folder)


def test_another_base_is_refused(copied):
    record = json.loads((copied("whole") / "record.json").read_text())
    folder = copied("other", record={record["base"]["fingerprint"]: "f" * 64})
    with pytest.raises(IncompatibleBlock, match=r"was made on base bundled \(ffffffffffff\), but bundled is"):
        pmemx.load_run(folder)


def test_a_gate_of_another_version_of_the_program_is_refused(copied):
    for name, edits, told in (
        (
            "moved",
            {"pmemx.gate.tracking.TrackingGate": "pmemx.gate.older.TrackingGate"},
            "trained for class pmemx.gate.older",
        ),
        ("field", {'"accuracy"': '"rightness"'}, "another version of pmemx: it differs in accuracy, rightness"),
    ):
        with pytest.raises(IncompatibleBlock, match=told):
            pmemx.load_run(copied(name, card=edits))
    with pytest.raises(ConfigError, match="TrackingGate takes no 'windows'"):
        pmemx.load_run(copied("setting", config={"window: 2": "windows: 2"}))


def test_a_damaged_gate_is_refused(copied):
    torn = copied("torn")
    path = torn / "gates/gate.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorruptBlock, match=r"gate\.safetensors holds no state of a gate"):
        pmemx.load_run(torn)
    with pytest.raises(CorruptBlock, match=r"gate\.json is not JSON"):
        pmemx.load_run(copied("unread", card={'"class"': "class"}))


def test_a_setting_that_the_environment_gave_is_asked_for_again(copied, monkeypatch):
    monkeypatch.delenv("PMEMX_PLACE", raising=False)
    with pytest.raises(ConfigError, match="PMEMX_PLACE"):
        pmemx.load_run(placed(copied(), "${oc.env:PMEMX_PLACE}"))


def test_settings_may_name_nothing_but_parts_of_pmemx(copied):
    folder = copied(config={"_target_: pmemx.store.governed.GovernedStore": "_target_: os.system"})
    with pytest.raises(ConfigError, match="is outside pmemx"):
        pmemx.load_run(folder)


def test_importing_pmemx_imports_no_torch():
    code = "import sys, pmemx; assert 'torch' not in sys.modules; assert 'load_run' in pmemx.__all__"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
