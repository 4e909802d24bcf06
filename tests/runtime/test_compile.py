"""torch.compile of a model with experts: one graph a layer, the same numbers, and nothing to compile anew for new experts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from compiled_layers import CASES, SLOW

SCRIPT = Path(__file__).with_name("compiled_layers.py")


def compiled(*cases: str) -> dict[str, dict[str, float]]:
    """What the script found out, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[2])}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *cases], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, float]]:
    return compiled(*CASES)


@pytest.fixture(scope="module")
def slow_results() -> dict[str, dict[str, float]]:
    return compiled(*SLOW)


@pytest.mark.parametrize("case", [case for case in CASES if "layers" in case])
def test_a_layer_is_one_graph_that_serves_other_tokens_swapped_experts_and_other_decisions(results, case):
    result = results[case]
    assert result["breaks"] == 0 and result["graphs"] > 0
    assert result["error"] < 1e-5 and result["second time"] == 0 and result["moved"] > 1e-2


def test_a_model_compiled_before_takes_on_experts_and_is_the_base_again_after_leaving(results):
    assert results["coming and going"]["error"] == 0 and results["coming and going"]["moved"] > 1e-2


def test_gradients_of_a_site_gate_through_compiled_layers_are_those_without(results):
    result = results["gradients, site by token"]
    assert result["breaks"] == 0 and result["graphs"] > 0
    assert result["error"] < 1e-4 and result["size"] > 1e-4


@pytest.mark.slow
def test_gradients_of_a_context_gate_through_compiled_layers_are_those_without(slow_results):
    result = slow_results["gradients, context by token"]
    assert result["breaks"] == 0 and result["graphs"] > 0
    assert result["error"] < 1e-4 and result["size"] > 1e-4


@pytest.mark.slow
def test_the_whole_model_compiles_and_gives_the_same_numbers(slow_results):
    assert slow_results["whole"]["graphs"] > 0 and slow_results["whole"]["error"] < 1e-5


@pytest.mark.slow
def test_a_model_that_is_compiled_generates_what_it_generated(slow_results):
    assert slow_results["generation"]["graphs"] > 0 and slow_results["generation"]["error"] == 0


@pytest.mark.slow
def test_inductor_compiles_a_layer_with_experts(slow_results):
    result = slow_results["inductor"]
    assert result["breaks"] == 0 and result["graphs"] > 0
    assert result["error"] < 1e-4 and result["second time"] == 0
