"""A run that is killed and resumed ends with bitwise the weights of one that was not."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pmemx.core.errors import CorruptBlock
from pmemx.lit.checkpoint import SafeCheckpointIO
from pmemx.lit.fit import newest

SCRIPT = Path(__file__).with_name("tiny_training.py")
spec = importlib.util.spec_from_file_location("tiny_training", SCRIPT)
assert spec is not None and spec.loader is not None
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)
_LORA = tiny.Lora


def killed(folder: Path, at: int, accumulate: int) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(SCRIPT), str(folder), str(at), str(accumulate)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


@pytest.mark.parametrize(("at", "accumulate"), [(7, 1), (4, 2)])
def test_resume_after_kill_9_is_bit_exact(tmp_path, at, accumulate):
    whole = tiny.train(tmp_path / "whole", accumulate=accumulate)
    killed(tmp_path / "killed", at, accumulate)
    checkpoint = newest(tmp_path / "killed")
    assert checkpoint is not None and int(checkpoint.stem) < 12
    resumed = tiny.train(tmp_path / "killed", resume=True, accumulate=accumulate)
    assert whole.keys() == resumed.keys() and len(whole) == 28
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_broken_checkpoint_is_passed_over(tmp_path):
    whole = tiny.train(tmp_path)
    last = newest(tmp_path)
    assert last is not None
    data = bytearray(last.read_bytes())
    data[-3] ^= 1
    last.write_bytes(data)
    earlier = newest(tmp_path)
    assert earlier is not None and earlier.name < last.name
    last.with_name("99999999.ckpt").write_bytes(bytes(data[:100]))
    assert newest(tmp_path) == earlier
    resumed = tiny.train(tmp_path, resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_holds_what_was_put_into_it(tmp_path):
    tree = {
        "a": {0: torch.arange(3), "b": [1, 2.5, None, True, "x"]},
        "c": (torch.ones(2, dtype=torch.bfloat16),),
        "d": torch.tensor(2.0),
    }
    SafeCheckpointIO().save_checkpoint(tree, tmp_path / "x.ckpt")
    back = SafeCheckpointIO().load_checkpoint(tmp_path / "x.ckpt")
    assert back["a"]["b"] == tree["a"]["b"] and isinstance(back["c"], tuple)
    assert torch.equal(back["a"][0], tree["a"][0]) and torch.equal(back["c"][0], tree["c"][0]) and back["d"] == 2.0


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    io = SafeCheckpointIO()
    io.save_checkpoint({"step": 1}, tmp_path / "x.ckpt")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        io.save_checkpoint({"step": 2}, tmp_path / "x.ckpt")
    assert io.load_checkpoint(tmp_path / "x.ckpt") == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]


def test_a_checkpoint_refuses_what_would_need_pickle(tmp_path):
    with pytest.raises(TypeError, match="tensors and JSON values"):
        SafeCheckpointIO().save_checkpoint({"f": print}, tmp_path / "x.ckpt")


def test_a_changed_byte_is_noticed(tmp_path):
    SafeCheckpointIO().save_checkpoint({"w": torch.ones(100)}, tmp_path / "x.ckpt")
    data = bytearray((tmp_path / "x.ckpt").read_bytes())
    data[-1] ^= 1
    (tmp_path / "x.ckpt").write_bytes(data)
    with pytest.raises(CorruptBlock, match="not what was saved"):
        SafeCheckpointIO().load_checkpoint(tmp_path / "x.ckpt")


def test_dropout_of_the_adapter_is_at_work(tmp_path, monkeypatch):
    with_dropout = tiny.train(tmp_path / "a")
    monkeypatch.setattr(tiny, "Lora", lambda rank, dropout: _LORA(rank=rank, dropout=0.0))
    without = tiny.train(tmp_path / "b")
    assert any(not torch.equal(a, b) for a, b in zip(with_dropout.values(), without.values(), strict=True))
