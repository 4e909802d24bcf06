"""Loggers receive what a run writes, and Weights & Biases stays offline and inside the run folder."""

import socket
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf

from pmemx.core.record import CurvePoint
from pmemx.lit.tracking import Tracker, keep_under
from pmemx.stage.build import build

ROOT = Path(__file__).parents[2]
POINTS = (
    CurvePoint("distill", "law", 1, "loss", 2.0),
    CurvePoint("distill", "law", 2, "loss", 1.0),
    CurvePoint("evaluate", None, 0, "recovery", 0.5),
)


def loggers(choice: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list:
    """The loggers of conf/logger/<choice>.yaml."""
    monkeypatch.setenv("PMEMX_ROOT", str(ROOT))
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("run", [f"logger={choice}", f"run_folder={folder}", "experiment=test"])
    nodes = OmegaConf.to_container(config.logger, resolve=True)
    assert isinstance(nodes, dict)
    return [build(node) for node in nodes.values()]


def test_points_become_curves_named_by_stage_domain_and_name(tmp_path: Path):
    logger = CSVLogger(tmp_path, name="", version="")
    tracker = Tracker([logger])
    tracker.points(POINTS)
    tracker.close(success=True)
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert header == "distill/law/loss,evaluate/recovery,step"
    assert rows == ["2.0,,1", "1.0,,2", ",0.5,0"]


def test_an_offline_run_asks_nothing_connects_nowhere_and_stays_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    home, folder = tmp_path / "home", tmp_path / "run"
    home.mkdir()
    folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    remote: list[object] = []
    connect = socket.socket.connect

    def only_here(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX and not (isinstance(address, tuple) and address[0] in ("127.0.0.1", "::1")):
            remote.append(address)
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", only_here)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, "")
    keep_under(folder / "wandb")
    report = folder / "report.html"
    report.write_text("<b>report</b>", encoding="utf-8")
    (folder / "bank").mkdir()
    (folder / "bank" / "block.json").write_text("{}", encoding="utf-8")
    tracker = Tracker(loggers("wandb", folder, monkeypatch))
    tracker.config({"seed": 0, "gate": {"k": 1}})
    tracker.points(POINTS)
    tracker.table("figures", ["name", "value"], [["recovery", 0.5]])
    tracker.artifact("report", "report", report)
    tracker.artifact("bank", "bank", folder / "bank")
    tracker.close(success=True)
    assert remote == []
    assert [path for path in home.rglob("*") if path.is_file()] == []
    assert len(list(folder.glob("wandb/offline-run-*/*.wandb"))) == 1
    assert len(list(folder.glob("wandb/offline-run-*/files/media/table/figures*.json"))) == 1
    assert "login" not in (out := capfd.readouterr()).out + out.err


def test_every_logger_choice_can_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    choices = sorted(path.stem for path in (ROOT / "conf/logger").glob("*.yaml"))
    built = {choice: [type(logger).__name__ for logger in loggers(choice, tmp_path, monkeypatch)] for choice in choices}
    assert built == {
        "csv": [],
        "many": ["WandbLogger", "TensorBoardLogger"],
        "tensorboard": ["TensorBoardLogger"],
        "wandb": ["WandbLogger"],
    }


def test_tensorboard_takes_curves_config_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tracker = Tracker(loggers("tensorboard", tmp_path, monkeypatch))
    tracker.config({"seed": 0})
    tracker.points(POINTS)
    tracker.table("figures", ["name", "value"], [["recovery", 0.5]])
    tracker.image("heatmap", tmp_path / "absent.png")
    tracker.close(success=True)
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    written = events.read_bytes()
    assert all(text in written for text in (b"distill/law/loss", b"evaluate/recovery", b"| recovery | 0.5 |"))
