"""A small random Llama, and eight experts of mixed alpha that PEFT wrote; PEFT's Arrow takes only equal ranks and sites."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from pmemx.core.bank import ExpertBank
from pmemx.core.peft_folder import read_peft_folder

ALPHAS = (2, 4, 8, 3, 16, 1, 6, 5)


@pytest.fixture(scope="session")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        use_cache=False,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def copied(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """PEFT changes the model that it wraps."""
    copy = LlamaForCausalLM(model.config).eval()
    copy.load_state_dict(model.state_dict())
    return copy


@pytest.fixture(scope="session")
def folders(llama, tmp_path_factory) -> list[Path]:
    paths = []
    for number, alpha in enumerate(ALPHAS):
        torch.manual_seed(number)
        config = LoraConfig(
            r=4, lora_alpha=alpha, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"], task_type="CAUSAL_LM"
        )
        model = get_peft_model(copied(llama), config)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(std=0.3)
        paths.append(tmp_path_factory.mktemp("adapters") / f"expert-{number}")
        model.save_pretrained(paths[-1])
    return paths


@pytest.fixture(scope="session")
def bank(folders) -> ExpertBank:
    return ExpertBank([read_peft_folder(path) for path in folders])


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, 61, (4, 9), generator=torch.Generator().manual_seed(7))
