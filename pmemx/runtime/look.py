"""A look at the base model without experts: its embeddings, its hidden states, or what its layers read."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, StaticCache

from pmemx.core.errors import PmemxError
from pmemx.runtime.forward_arguments import CACHE, TOKEN_ARGUMENTS, ForwardArguments


class Look:
    """Passes of the model's body, without its head and without gradients: the base is frozen."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._body: nn.Module = getattr(model, "base_model", model)
        self._arguments = ForwardArguments(self._body)
        self._layers: int = model.config.get_text_config(decoder=True).num_hidden_layers  # type: ignore[union-attr,operator]

    def hidden(
        self, layer: int, ids: Int[Tensor, "batch token"] | None, kwargs: dict[str, Any], cache: Cache | None
    ) -> Float[Tensor, "batch token width"]:
        """Hidden states after a layer (0 the embedding, -1 the last, after the final norm). cache: of earlier looks."""
        if not -1 <= layer <= self._layers:
            raise PmemxError(
                f"the gate reads layer {layer}, but the model has {self._layers}; 0 is the embedding, -1 the last"
            )
        embeddings = kwargs.get("inputs_embeds")
        if layer == 0:
            return embeddings if embeddings is not None else self._model.get_input_embeddings()(ids)  # type: ignore[operator]
        last = layer in (-1, self._layers)
        out = self.over(ids, kwargs, cache, output_hidden_states=not last)
        return out.last_hidden_state if last else out.hidden_states[layer]

    @torch.no_grad()
    def over(
        self,
        ids: Int[Tensor, "batch token"] | None,
        kwargs: dict[str, Any],
        cache: Cache | None,
        output_hidden_states: bool = False,
    ) -> Any:
        """A pass over the same tokens as the one that is about to begin."""
        passed_on = {key: kwargs[key] for key in TOKEN_ARGUMENTS if key in kwargs}
        return self._body(
            input_ids=ids,
            inputs_embeds=kwargs.get("inputs_embeds"),
            use_cache=cache is not None,
            output_hidden_states=output_hidden_states,
            **self._arguments.with_cache(cache),
            **passed_on,
        )

    def caches(self, kwargs: dict[str, Any]) -> bool:
        """Whether the pass that is about to begin keeps a cache."""
        if CACHE in kwargs:
            return True
        asked = kwargs.get("use_cache")
        return bool(self._model.config.use_cache if asked is None else asked)  # type: ignore[union-attr]

    def new_cache(self, beside: Cache | None) -> Cache:
        """An empty cache for the body. beside: the cache of the pass, whose masks and whose way of taking tokens back fit it."""
        if isinstance(beside, StaticCache):
            return StaticCache(config=self._model.config, max_cache_len=beside.get_max_length())  # type: ignore[arg-type]
        cache = DynamicCache(config=self._model.config)  # type: ignore[arg-type]
        if beside is not None and any(getattr(layer, "record_past", False) for layer in beside.layers):
            cache.activate_past_recording()
        return cache
