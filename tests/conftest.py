"""One thread, no network, no tracking, shapes checked at run time, and the same draws in every test."""

import os

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
}

import jaxtyping
import pytest
import torch

torch.set_num_threads(1)
# Must stand before the first import of pmemx. An int may pass for a float, as in PEP 484.
jaxtyping.install_import_hook("pmemx", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test draws from torch's own generator depends neither on the tests before it nor on the worker that runs it."""
    torch.manual_seed(0)
