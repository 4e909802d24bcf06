"""Two processes that train a gate together: each its own batches, one result, and that of one process on both's."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

from pmemx.lit.fit import Report

SCRIPT = Path(__file__).with_name("gate_training.py")
spec = importlib.util.spec_from_file_location("gate_training", SCRIPT)
assert spec is not None and spec.loader is not None
gate_training = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gate_training)


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """What two processes left behind, with dropout and without."""
    folder = tmp_path_factory.mktemp("ddp")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def left(folder: Path, dropout: float, rank: int):
    return load_file(folder / f"{dropout}-{rank}.safetensors"), *json.loads(
        (folder / f"{dropout}-{rank}.json").read_text()
    )


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_both_processes_end_with_the_same_weights(together, dropout):
    (first, *_), (second, *_) = left(together, dropout, 0), left(together, dropout, 1)
    assert first.keys() == second.keys() and len(first) == 4
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_each_process_sees_its_own_batches_and_the_first_one_reports(together):
    (_, reported, asked), (_, silent, asked_too) = left(together, 0.0, 0), left(together, 0.0, 1)
    assert asked[:6] == [0, 2, 4, 6, 8, 10] and asked_too[:6] == [1, 3, 5, 7, 9, 11]
    assert len(reported) == 6 and silent == []


@pytest.mark.parametrize("agreed", [False, True])
def test_training_stops_early_when_the_loss_is_low_in_every_process(agreed):
    trainer = Mock(
        spec=L.Trainer,
        accumulate_grad_batches=1,
        callback_metrics={"train/loss": torch.tensor(0.5)},
        is_global_zero=True,
        global_step=1,
        should_stop=False,
    )
    trainer.strategy.reduce_boolean_decision = lambda low: low and agreed
    report = Report(lambda step, values: None, stop_below=1.0)
    stops = []
    for number in range(11):
        report.on_train_batch_end(trainer, Mock(spec=L.LightningModule), None, None, number)
        stops.append(trainer.should_stop)
    assert stops == [False] * 9 + [agreed] * 2


def test_the_weights_are_those_of_one_process_on_the_joined_batches(together):
    start, *_ = gate_training.train(devices=1, accumulate=1, joined=2, dropout=0.0)
    found, *_ = left(together, 0.0, 0)
    assert all((found[name] - start[name]).abs().max() < 1e-6 for name in start)
    assert found["choice.weight"].abs().max() > 1e-2


def test_the_weights_are_those_of_one_process_that_accumulates_dropout_included(together):
    alone, *_ = gate_training.train(devices=1, accumulate=2, dropout=0.3)
    found, *_ = left(together, 0.3, 0)
    without, *_ = left(together, 0.0, 0)
    assert all((found[name] - alone[name]).abs().max() < 1e-6 for name in alone)
    assert (found["choice.weight"] - without["choice.weight"]).abs().max() > 1e-3
