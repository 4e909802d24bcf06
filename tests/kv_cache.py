"""The KV cache under the name that the installed transformers gives it: `past_key_values` until 5.23, `cache` since."""

import inspect

from transformers import LlamaForCausalLM
from transformers.cache_utils import Cache
from transformers.modeling_outputs import ModelOutput

CACHE = next(
    name for name in ("cache", "past_key_values") if name in inspect.signature(LlamaForCausalLM.forward).parameters
)


def cache_of(output: ModelOutput) -> Cache:
    """The cache that a pass returned."""
    return output[CACHE]
