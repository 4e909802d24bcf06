"""A gate is one file and one YAML: nothing else is edited, and everything knows it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GATE = '''"""A gate of a newcomer: the last prompt token decides."""

import torch
from torch import nn

from pmemx.core.bank import BankShape
from pmemx.core.gate import ContextGate


class LastTokenGate(ContextGate):
    """Scores from the embedding of the last prompt token."""

    def __init__(self, shape: BankShape, *, sharpness: float = 1.0) -> None:
        super().__init__(shape)
        self.sharpness = sharpness
        self.decide = nn.Linear(shape.width, shape.num_choices)

    def forward(self, hidden, prompt, domain):
        position = torch.arange(prompt.shape[1], device=prompt.device).expand(prompt.shape)
        last = position.masked_fill(~prompt, -1).amax(dim=1).clamp_min(0)
        return self.sharpness * self.decide(hidden.float()[torch.arange(len(last)), last])[:, None]
'''
YAML = """# The last prompt token decides.
_target_: pmemx.gate.newcomer.LastTokenGate
_partial_: true
sharpness: 2.0
"""


def test_one_file_and_one_yaml_make_a_gate(tmp_path):
    for name in ("pmemx", "conf", "experiments", "tests/contract", "tests/conftest.py", "pyproject.toml"):
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    (tmp_path / "pmemx" / "gate" / "newcomer.py").write_text(GATE)
    (tmp_path / "conf" / "gate" / "newcomer.yaml").write_text(YAML)

    def run(*command: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
        environment.pop("PMEMX_ROOT", None)
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    assert "The last prompt token decides." in run("-m", "pmemx.cli", "list", "gate")
    assert "7 passed" in run("-m", "pytest", "-q", "tests/contract/test_gate_contract.py", "-k", "newcomer")
    output = run("-m", "pmemx.cli", "run", "gate=newcomer", "gate.sharpness=3", "scale=smoke")
    assert "Train gate gate: 3/3" in output and "report:" in output
