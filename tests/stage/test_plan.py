"""A plan runs its stages in order, and the run folder says what happened."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from pmemx.core.block import CapabilityBlock, LoraFactors
from pmemx.core.card import BlockCard, Version
from pmemx.core.errors import ConfigError, DataError
from pmemx.core.extras import install
from pmemx.core.metric import Figure
from pmemx.core.record import BaseEntry, RunRecord
from pmemx.core.stage import Ledger, MetricsLog, Stage, Workspace
from pmemx.stage import launch as launch_module
from pmemx.stage.launch import launch, replaced_blocks
from pmemx.stage.origin import experiment_digest, seeds, settings_digest
from pmemx.stage.plan import Outcome, run_plan, write_csv
from pmemx.stage.progress import RichProgress
from pmemx.stage.summary import methods_table, stages_table
from pmemx.store.governed import GovernedStore


@dataclass(frozen=True)
class Measure(Stage):
    """Writes a curve of `steps` points, a figure, a note and a block."""

    steps: int = 3

    def run(self, workspace: Workspace) -> dict[str, float]:
        with workspace.progress("Measure", total=self.steps) as advance:
            for step in range(self.steps):
                workspace.metrics.write("measure", {"loss": 1 / (step + 1)}, domain="law", step=step)
                advance(1, f"step {step}")
        workspace.ledger.base = BaseEntry("tiny", "f" * 64)
        workspace.ledger.figures["exact_match/gate/law/test"] = Figure(0.5, 0.25, 0.75, n=40, clusters=8)
        workspace.ledger.notes.append("numbers of a test")
        workspace.ledger.add(Version("law", 2, "d" * 64, BlockCard("law", "law", "f" * 64)))
        return {"exact_match/gate/law/test": 0.5}


@dataclass(frozen=True)
class Fail(Stage):
    """Raises."""

    def run(self, workspace: Workspace) -> dict[str, float]:
        raise DataError("no row is left")


def settings(folder: Path, *plan: str):
    nodes = {"measure": {"_target_": "Measure", "steps": 4}, "fail": {"_target_": "Fail"}}
    return OmegaConf.create(
        {
            "experiment": "test",
            "plan": list(plan),
            "stage": nodes,
            "seed": 7,
            "data": {"seed": 3},
            "run_folder": str(folder),
            "logger": None,
            "notice": "",
            "summary": {"exact match": "exact_match/{method}/law/test"},
        }
    )


@pytest.fixture
def build_local(monkeypatch: pytest.MonkeyPatch):
    """Configs may name classes of pmemx alone; here they name the stages above."""
    made = {"Measure": Measure, "Fail": Fail}

    def build(node: dict) -> Stage:
        return made[node["_target_"]](**{key: value for key, value in node.items() if key != "_target_"})

    monkeypatch.setattr(launch_module, "build", build)


def write_report(folder: Path) -> Path:
    path = folder / "report.html"
    path.write_text(RunRecord.read(folder).experiment, encoding="utf-8")
    return path


def test_stages_run_in_the_order_of_the_plan_and_each_is_followed_by_after(tmp_path: Path):
    seen: list[tuple[str, ...]] = []
    stages = {"second": Measure(1), "first": Measure(2)}
    outcomes = run_plan(stages, Workspace(tmp_path), after=lambda done: seen.append(tuple(o.stage for o in done)))
    assert [o.stage for o in outcomes] == ["second", "first"]
    assert seen == [("second",), ("second", "first")]
    assert all(o.seconds >= 0 and o.values == {"exact_match/gate/law/test": 0.5} for o in outcomes)


def test_headline_numbers_and_curves_reach_both_files(tmp_path: Path):
    workspace = Workspace(tmp_path)
    run_plan({"measure": Measure(2)}, workspace, after=lambda done: None)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [
        {"stage": "measure", "domain": "law", "step": 0, "name": "loss", "value": 1.0},
        {"stage": "measure", "domain": "law", "step": 1, "name": "loss", "value": 0.5},
        {"stage": "measure", "domain": None, "step": 0, "name": "exact_match/gate/law/test", "value": 0.5},
    ]
    assert write_csv(workspace.metrics).read_text(encoding="utf-8").splitlines() == [
        "stage,domain,step,name,value",
        "measure,law,0,loss,1.0",
        "measure,law,1,loss,0.5",
        "measure,,0,exact_match/gate/law/test,0.5",
    ]


def test_a_run_leaves_its_record_and_ends_with_a_summary_and_the_report(tmp_path: Path, build_local: None):
    output = io.StringIO()
    launch(settings(tmp_path / "run", "measure"), write_report, console=Console(file=output, width=120))
    record = RunRecord.read(tmp_path / "run")
    assert (record.experiment, record.plan, record.seeds) == ("test", ("measure",), {"seed": 7, "data.seed": 3})
    assert record.base == BaseEntry("tiny", "f" * 64)
    assert [(block.name, block.version, block.domain) for block in record.blocks] == [("law", 2, "law")]
    assert record.figures["exact_match/gate/law/test"] == Figure(0.5, 0.25, 0.75, n=40, clusters=8)
    assert record.notes == ("numbers of a test",)
    assert record.versions.keys() >= {"python", "torch", "peft"}
    text = output.getvalue()
    assert "Measure: 4/4" in text
    assert "0.500 0.250 to 0.750" in text
    assert text.splitlines()[-2] == "numbers of a test"
    assert text.splitlines()[-1] == f"report: {tmp_path / 'run' / 'report.html'}"


def test_what_a_scale_warns_of_is_in_the_record_and_the_output(tmp_path: Path, build_local: None):
    output = io.StringIO()
    config = OmegaConf.merge(settings(tmp_path, "measure"), {"notice": "no number [here] means anything"})
    assert isinstance(config, DictConfig)
    launch(config, write_report, console=Console(file=output, width=40))
    assert RunRecord.read(tmp_path).notice == "no number [here] means anything"
    assert output.getvalue().splitlines()[-3:-1] == ["no number [here] means anything", "numbers of a test"]


def test_a_run_that_fails_leaves_the_record_of_what_was_done(tmp_path: Path, build_local: None):
    with pytest.raises(DataError, match="no row is left"):
        launch(settings(tmp_path, "measure", "fail"), write_report, console=Console(file=io.StringIO()))
    assert RunRecord.read(tmp_path).seconds.keys() == {"measure"}
    assert not (tmp_path / "report.html").exists()


def test_the_digest_of_settings_ignores_where_a_run_writes_and_nothing_else():
    base = {"seed": 0, "run_folder": "a", "logger": None, "gate": {"k": 1}}
    assert settings_digest(base) == settings_digest(base | {"run_folder": "b", "logger": {"wandb": {}}, "notice": "x"})
    assert settings_digest(base) != settings_digest(base | {"seed": 1})
    assert settings_digest(base) != settings_digest(base | {"gate": {"k": 2}})


def test_the_digest_of_an_experiment_ignores_seeds_and_stages_that_only_read_besides():
    base = {"seed": 0, "data": {"seed": 0, "rows": 4}, "stage": {"evaluate": {"seed": 0}, "study": {"limits": ["a"]}}}
    other = {"seed": 1, "data": {"seed": 1, "rows": 4}, "stage": {"evaluate": {"seed": 1}, "study": {"limits": ["b"]}}}
    assert experiment_digest(base) == experiment_digest(other)
    told = {"plan": ["evaluate"], "summary": {"a": "b"}, "metric": {"pairs": {"seed": 3}}}
    assert experiment_digest(base) == experiment_digest(base | told)
    assert experiment_digest(base | {"gates": [{"seed": 0}]}) == experiment_digest(base | {"gates": [{"seed": 1}]})
    kept = {"bank_folder": "outputs/bank_seed1", "store": {"path": "outputs/bank_seed1"}}  # a seed has its own bank
    assert experiment_digest(base) == experiment_digest(base | kept)
    assert experiment_digest(base) != experiment_digest(base | {"data": {"seed": 0, "rows": 5}})
    assert experiment_digest(base) != experiment_digest(base | {"stage": {"evaluate": {"seed": 0, "questions": 5}}})


def test_seeds_are_named_by_their_path_and_stages_do_not_repeat_them():
    assert seeds({"seed": 1, "data": {"seed": 2}, "stage": {"x": {"data": {"seed": 2}}}}) == {"seed": 1, "data.seed": 2}


def test_bars_on_a_terminal_stand_side_by_side_and_close_together():
    output = io.StringIO()
    progress = RichProgress(Console(file=output, force_terminal=True, width=120))
    with progress("Distil law", total=2) as law, progress("Distil finance", total=4) as finance:
        law(2, "loss 0.1")
        finance(1)
    with progress("Evaluate", total=1) as advance:
        advance()
    text = output.getvalue()
    assert all(part in text for part in ("Distil law", "2/2", "Distil finance", "1/4", "Evaluate", "1/1", "loss 0.1"))


def test_a_log_keeps_rows_of_many_writers_whole(tmp_path: Path):
    logs = [MetricsLog(tmp_path) for _ in range(3)]
    for step in range(5):
        for number, log in enumerate(logs):
            log.write("distill", {"loss": 0.5}, domain=str(number), step=step)
    assert [(point.domain, point.step) for point in logs[0].read()] == [(str(n), s) for s in range(5) for n in range(3)]


def test_the_methods_table_turns_figures_into_rows_and_leaves_empty_columns_out():
    figures = {
        "exact_match/base/all_domains/test": Figure(0.1),
        "exact_match/gate/all_domains/test": Figure(0.9, 0.8, 0.95),
        "exact_match/gate/law/test": Figure(0.7),
        "forgetting_general/loss/gate": Figure(0.003),
    }
    columns = {
        "exact": "exact_match/{method}/all_domains/test",
        "nats": "token_loss/{method}/all_domains/test",
        "lost": "forgetting_general/loss/{method}",
    }
    output = io.StringIO()
    table = methods_table(figures, columns)
    Console(file=output, width=100).print(table)
    assert [str(column.header) for column in table.columns] == ["method", "exact", "lost"]
    rows = [[cell.strip() for cell in line.split("\u2502")[1:-1]] for line in output.getvalue().splitlines()]
    assert [row for row in rows if row] == [["base", "0.100", ""], ["gate", "0.900 0.800 to 0.950", "0.003"]]


def test_a_stage_without_numbers_still_shows_its_time():
    output = io.StringIO()
    Console(file=output, width=100).print(
        stages_table((Outcome("export", 1.25, {}), Outcome("distill", 2, {"blocks": 3})))
    )
    assert all(text in output.getvalue() for text in ("export", "1.2", "blocks 3"))


def test_a_logger_whose_package_is_missing_names_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def absent(node: dict) -> object:
        if node["_target_"] == "Measure":
            return Measure()
        raise ModuleNotFoundError("Neither `tensorboard` nor `tensorboardX` is available")

    monkeypatch.setattr(launch_module, "build", absent)
    wanted = settings(tmp_path / "run", "measure")
    wanted.logger = {"tensorboard": {"_target_": "lightning.pytorch.loggers.TensorBoardLogger"}}
    with pytest.raises(ConfigError) as caught:
        launch(wanted, write_report, console=Console(file=io.StringIO()))
    assert f"run: {install('tensorboard')}, or choose another logger" in str(caught.value)
    assert not (tmp_path / "run" / "record.json").exists()


def test_names_that_a_run_gave_a_newer_version_are_told_and_first_versions_are_not(tmp_path: Path):
    store = GovernedStore(tmp_path / "bank")
    node = {"_target_": "pmemx.store.governed.GovernedStore", "path": str(tmp_path / "bank")}

    def put(name: str, fill: float, created: str) -> Version:
        factors = {"q": LoraFactors(torch.full((2, 3), fill), torch.ones(4, 2), 1.0)}
        return store.put(CapabilityBlock(BlockCard(name, name, "f" * 64, created=created), factors))

    put("law", 1.0, "2026-01-01T00:00:00+00:00")
    found = put("botany", 1.0, "2026-01-01T00:00:00+00:00")
    ledger, began = Ledger(), "2026-01-02T00:00:00+00:00"
    ledger.add(found)
    assert replaced_blocks(node, ledger, began) == ""
    for name, fill in (("law", 2.0), ("sequential", 1.0), ("sequential", 2.0)):
        ledger.add(put(name, fill, "2026-01-02T00:00:01+00:00"))
    told = replaced_blocks(node, ledger, began)
    assert told.startswith("this run made the latest version of what the bank held already: law@2 (before: law@1); ")
    assert "sequential" not in told and "botany" not in told
    assert replaced_blocks(None, ledger, began) == ""
