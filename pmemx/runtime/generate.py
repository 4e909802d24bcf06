"""Batched generation through transformers: left-padded prompts in, new token ids out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pmemx.core.encoding import Encoded


@torch.no_grad()
def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Encoded],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
    sample: bool = False,
    seed: int = 0,
) -> list[tuple[int, ...]]:
    """New ids of every prompt, without the end token and what follows it; greedy, or sampled from the given seed.

    Works for a bare model and inside `attached`, where a decision about the prompt holds for the whole answer.
    """
    answers: list[tuple[int, ...]] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            answers += generate_batch(model, tokenizer, batch, max_new_tokens=max_new_tokens, sample=sample)
    return answers


def generate_batch(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Encoded], *, max_new_tokens: int, sample: bool
) -> list[tuple[int, ...]]:
    """The same for prompts that are read together, padded on the left to the longest; draws from the global generator."""
    device = next(model.parameters()).device
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    given = [list(row.ids[: row.prompt_length]) for row in prompts]
    length = max(len(ids) for ids in given)
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in given], device=device)
    attention = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in given], device=device)
    out = model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=attention,
        max_new_tokens=max_new_tokens,
        do_sample=sample,
        pad_token_id=pad,
        eos_token_id=end,
        # Whatever the model's settings say: a decision about the prompt travels with the cache.
        use_cache=True,
    )
    return [tuple(row[: row.index(end)] if end in row else row) for row in out[:, length:].tolist()]
