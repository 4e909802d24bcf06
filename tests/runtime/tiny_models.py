"""Models of a few thousand weights, and experts of mixed rank, scale and sites for them."""

from collections.abc import Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors

VOCAB = 61
WIDTH = 32
TARGETS = ("q_proj", "v_proj", "up_proj", "down_proj")
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def frozen(model: torch.nn.Module) -> torch.nn.Module:
    """In evaluation mode and without gradients."""
    return model.eval().requires_grad_(False)


def tiny_llama(**changed: object) -> LlamaForCausalLM:
    """The same random weights every time."""
    torch.manual_seed(0)
    return frozen(LlamaForCausalLM(LlamaConfig(**(SIZES | changed))))


def block(model: torch.nn.Module, number: int, targets: Sequence[str] = TARGETS, **card: str) -> CapabilityBlock:
    """Expert `number`: its own rank and scale; every third adapts only the first half of the targets."""
    generator = torch.Generator().manual_seed(number)
    chosen = tuple(targets) if number % 3 else tuple(targets[: (len(targets) + 1) // 2])
    factors = {}
    for name, module in model.named_modules():
        if name.endswith(chosen):
            width_in, width_out = module.weight.shape if isinstance(module, Conv1D) else module.weight.shape[::-1]
            rank = 1 + number % 4
            A = torch.randn(rank, width_in, generator=generator) * 0.3
            B = torch.randn(width_out, rank, generator=generator) * 0.3
            factors[name] = LoraFactors(A, B, scale=0.5 + number / 4)
    return CapabilityBlock(BlockCard(name=card.get("name", f"expert-{number}"), domain="test", base=""), factors)


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Of one pass over whole rows without a cache."""
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


def trained_like(gate: torch.nn.Module) -> torch.nn.Module:
    """Random weights, so that decisions differ between rows and sites."""
    torch.manual_seed(3)
    for parameter in gate.parameters():
        parameter.data = torch.randn_like(parameter) * 0.5
    return gate.eval()
