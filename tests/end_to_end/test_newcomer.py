"""A gate is one file and one YAML: nothing else is edited, and everything knows it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GATE = '''"""A gate of a newcomer: a linear layer on the mean embedding of the prompt."""

from torch import nn

from pmemx.core.bank import BankShape
from pmemx.core.gate import ContextGate
from pmemx.core.vote import Granularity


class MeanGate(ContextGate):
    """W mean(x) + b."""

    def __init__(self, shape: BankShape, *, sharpness: float = 1.0, granularity: Granularity = "prompt") -> None:
        super().__init__(shape, granularity=granularity)
        self.sharpness = sharpness
        self.choose = nn.Linear(shape.width, shape.num_choices)

    def read(self, hidden):
        return hidden.float()

    def score(self, pooled, domain):
        return self.sharpness * self.choose(pooled)
'''
YAML = """# The mean embedding of the prompt decides.
_target_: pmemx.gate.newcomer.MeanGate
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

    assert "The mean embedding of the prompt decides." in run("-m", "pmemx.cli", "list", "gate")
    covered = run("-m", "pytest", "-q", "tests/contract/test_gate_contract.py", "-k", "newcomer")
    passed = re.search(r"(\d+) passed, 2 skipped", covered)
    assert passed is not None and int(passed[1]) >= 10
    output = run("-m", "pmemx.cli", "run", "gate=newcomer", "gate.sharpness=3", "scale=smoke")
    assert "Train gate gate: 3/3" in output and "report:" in output
