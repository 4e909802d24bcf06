"""What the arguments of a causal language model's forward mean; one that pmemx does not know stops the pass."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers.cache_utils import Cache

from pmemx.core.errors import PmemxError

CACHE = "cache"
"""The KV cache's name in what `named` returns."""
CACHE_NAMES = (CACHE, "past_key_values")
"""The names under which models take the KV cache: transformers renamed the second to the first in 5.24."""
TOKEN_ARGUMENTS = ("attention_mask", "position_ids", "cache_position", "token_type_ids")
"""What says of the tokens how they are read; a second pass over the same tokens needs the same."""
_KNOWN = frozenset(
    {
        *("input_ids", "inputs_embeds", *TOKEN_ARGUMENTS, CACHE, "use_cache"),
        *("labels", "num_items_in_batch", "logits_to_keep", "return_dict"),
        *("output_attentions", "output_hidden_states", "output_router_logits"),
    }
)


class ForwardArguments:
    """The arguments of one module's forward by name, the KV cache under the same name whatever the module calls it."""

    def __init__(self, module: nn.Module) -> None:
        parameters = inspect.signature(module.forward).parameters
        self._positional = tuple(parameters)
        self._cache_name = next((name for name in CACHE_NAMES if name in parameters), None)
        self._takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        self._module = type(module).__name__

    def named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What a pass was given, by name, without what is None.

        Raises PmemxError for an argument that pmemx does not know: it may say which tokens belong together, or hold the KV
        cache, and experts would then be chosen from other tokens than the model reads.
        """
        given = {**dict(zip(self._positional, args, strict=False)), **kwargs}
        found: dict[str, Any] = {}
        for name, value in given.items():
            known = CACHE if name in CACHE_NAMES else name
            if value is None:
                continue
            if known not in _KNOWN:
                what = "a KV cache under a name" if isinstance(value, Cache) else "an argument"
                raise PmemxError(
                    f"{self._module}.forward was given {name!r}, {what} that pmemx does not know; experts could be chosen "
                    f"from other tokens than the model reads. Leave it out, or install a release of transformers that this "
                    f"pmemx was tested with"
                )
            if known == CACHE and not isinstance(value, Cache):
                raise PmemxError(
                    f"{self._module}.forward was given a {type(value).__name__} as {name!r}; what was decided about a prompt "
                    f"travels in a transformers Cache alone. Give one (DynamicCache()), or leave the cache out"
                )
            if known in found:
                raise PmemxError(f"{self._module}.forward was given two KV caches; give one, as {self._cache_name!r}")
            found[known] = value
        return found

    def with_cache(self, cache: Cache | None) -> dict[str, Cache]:
        """The argument that hands the module a cache; none for None. Raises PmemxError where it takes none."""
        if cache is None:
            return {}
        if self._cache_name is None and not self._takes_any:
            raise PmemxError(
                f"{self._module}.forward takes no KV cache under a name that pmemx knows ({', '.join(CACHE_NAMES)}); install "
                f"a release of transformers that this pmemx was tested with"
            )
        return {self._cache_name or CACHE: cache}
