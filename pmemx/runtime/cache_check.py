"""Whether a base generates with a KV cache what it says without one: asked once a base, before experts are chosen by it."""

from typing import Any
from weakref import WeakSet

import torch
import transformers
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin

from pmemx.core.errors import PmemxError
from pmemx.runtime.forward_arguments import CACHE, ForwardArguments

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest difference of logits that rounding explains, as a share of the largest logit, by type of the base's weights."""
HALF_TOLERANCE = 0.05
"""For types of 16 bits and fewer."""
_PROMPT, _NEW = 5, 3
_MASKED = 1e4  # no logit of a language model is so large
_checked: WeakSet[nn.Module] = WeakSet()


def check_cached_generation(model: nn.Module) -> None:
    """Generate three tokens with the KV cache, and compare their logits with one pass over all tokens without a cache.

    A release of transformers may hand the cache to `forward` under another name. Every cached token would then be routed as
    a prompt of its own, and no error would say so. A model that passed is not asked again; one that is being trained, or that
    cannot generate, is not asked.
    Raises PmemxError where the cache cannot be found, or where the logits differ by more than rounding.
    """
    if model in _checked or model.training or not isinstance(model, GenerationMixin):
        return
    device = next(model.parameters()).device
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    ids = torch.linspace(0, vocabulary // 2, _PROMPT, device=device).long()[None]  # far from tokens of images
    sequences, cached = _generated(model, ids)
    with torch.no_grad():
        whole = model(input_ids=sequences, attention_mask=torch.ones_like(sequences), use_cache=False)  # type: ignore[operator]
    error = _difference(cached.float(), whole.logits[:, _PROMPT - 1 : -1].float())
    tolerance = TOLERANCE.get(next(model.parameters()).dtype, HALF_TOLERANCE)
    if not error <= tolerance:
        raise PmemxError(
            f"{type(model).__name__} says something else with a KV cache than without one: its logits differ by {error:.2g} of "
            f"the largest, rounding explains {tolerance:g} (transformers {transformers.__version__}); what experts answer by "
            f"`generate` would not be what was measured. Use a release of transformers that this pmemx was tested with, or, where "
            f"the base is meant so, attach with check_cache=False"
        )
    _checked.add(model)


def _difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference as a share of the largest logit. Tokens that a base masks, by any huge number, must be the same."""
    said, meant = (logits.isfinite() & (logits.abs() < _MASKED) for logits in (found, expected))
    if not bool(meant.any()) or not torch.equal(said, meant):
        return float("inf")
    return float((found - expected)[meant].abs().max() / expected[meant].abs().max().clamp_min(1e-6))


def _generated(model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Prompt and generated tokens, and the logits of the generated ones. Raises PmemxError where no cache can be found."""
    arguments, lengths = ForwardArguments(model), []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = arguments.named(args, kwargs)
        tokens = given["input_ids"].shape[1]
        if lengths and tokens == 1 and CACHE not in given:
            raise PmemxError(
                f"`generate` continues a text, but hands {type(model).__name__}.forward no KV cache that pmemx can find "
                f"(transformers {transformers.__version__}); use a release that this pmemx was tested with"
            )
        lengths.append(tokens)

    settings = GenerationConfig(
        max_new_tokens=_NEW,
        min_new_tokens=_NEW,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    # Greedy whatever the model's own settings ask for, which fill in what a call leaves open.
    stored, model.generation_config = model.generation_config, GenerationConfig()  # type: ignore[assignment]
    try:
        with torch.no_grad():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)  # type: ignore[operator]
    finally:
        handle.remove()
        model.generation_config = stored  # type: ignore[assignment]
    return out.sequences, torch.stack(out.logits, dim=1)
