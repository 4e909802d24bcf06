"""One tiny Llama and a bank of eight experts for it; attaching leaves both as they were."""

import pytest
import torch
from tiny_models import VOCAB, block, tiny_llama
from transformers import LlamaForCausalLM

from pmemx.core.bank import ExpertBank
from pmemx.core.block import CapabilityBlock


@pytest.fixture(scope="session")
def llama() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture(scope="session")
def blocks(llama: LlamaForCausalLM) -> list[CapabilityBlock]:
    return [block(llama, number) for number in range(8)]


@pytest.fixture
def bank(blocks: list[CapabilityBlock]) -> ExpertBank:
    """A new one for every test: tests swap experts."""
    return ExpertBank(blocks)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, VOCAB, (4, 9), generator=torch.Generator().manual_seed(7))
