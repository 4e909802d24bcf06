"""Gates score the experts of a bank; choice 0 is always "no expert"."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from pmemx.core.bank import BankShape
from pmemx.core.block import LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.core.vote import Granularity, Pool

Level = Literal["site", "layer", "model"]
NEVER = -1e9
"""The score of a choice that is never taken: no softmax hears it, and yet votes can average and add it."""
_LAYER = re.compile(r".*?\.\d+(?=\.)")


class SiteGate(nn.Module, ABC):
    """Scores at a site, token by token, from what the site reads; how they become decisions is an argument.

    granularity: every "token" decides anew; tokens vote on the "prefix" so far, a causal running mean; or the tokens of
    the "prompt" vote once and the decision is kept. level: each "site" decides for itself; the first site of a "layer"
    decides for its layer (arXiv:2402.11455); or the scores of all sites are summed for the whole "model", which costs a
    pass of the base model over the same tokens.
    """

    trains_alone: ClassVar[bool] = False
    """Whether a training row may only choose between its own expert and none (PHATGOOSE trains each gate alone)."""

    def __init__(self, shape: BankShape, *, granularity: Granularity = "token", level: Level = "site") -> None:
        super().__init__()
        _check("granularity", granularity, ("token", "prefix", "prompt"))
        _check("level", level, ("site", "layer", "model"))
        self.shape, self.granularity, self.level = shape, granularity, level

    @abstractmethod
    def forward(self, site: str, x: Float[Tensor, "batch token width_in"]) -> Float[Tensor, "batch token choice"]:
        """Scores of token t depend on x at t alone; granularity and level are applied to them afterwards."""


class FactorGate(SiteGate, ABC):
    """A gate that needs no training: it reads its experts' factors, and reads an expert again when it is swapped."""

    @abstractmethod
    def read_expert(self, expert: int, factors: Mapping[str, LoraFactors]) -> None:
        """Take expert (from 0; its choice is expert + 1) from its factors by site; a site may be missing."""


class ContextGate(nn.Module, ABC):
    """One decision for all sites, from the hidden states of the base model without experts.

    layer: which hidden states; 0 is the embedding, which costs no pass of the base, -1 the last. Tokens are read one by
    one, what they say is pooled over the token alone, the prefix or the prompt (see SiteGate), and the pool is scored:
    so every gate is causal and goes with a KV cache, whatever its granularity.
    """

    layer: int = 0
    reach: int = 0
    """How many earlier tokens must be seen to read one token: window - 1 of a convolution."""
    pool: Pool = "mean"

    def __init__(self, shape: BankShape, *, granularity: Granularity = "prompt") -> None:
        super().__init__()
        _check("granularity", granularity, ("token", "prefix", "prompt"))
        self.shape, self.granularity = shape, granularity

    @abstractmethod
    def read(self, hidden: Float[Tensor, "batch seen width"]) -> Float[Tensor, "batch token feature"]:
        """What each token says. `seen` is reach + token: the tokens before those asked for, zero where there is no text."""

    @abstractmethod
    def score(
        self, pooled: Float[Tensor, "batch token feature"], domain: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch token choice"] | Float[Tensor, "batch token site choice"]:
        """Scores of a decision, for all sites or site by site in the order of the shape.

        domain is the true choice where it is known, -1 where it is not; a gate that reads it must be told.
        """


class ExampleGate(ContextGate, ABC):
    """A gate that learns from examples in one pass over them, without gradients."""

    @abstractmethod
    def see(self, pooled: Float[Tensor, "batch 1 feature"], choice: Int[Tensor, " batch"]) -> None:
        """Take in what prompts of known choice say; the order of examples does not matter."""


Gate = SiteGate | ContextGate


def layer_of(site: str) -> str:
    """The layer that a site belongs to: its name up to the first number ("model.layers.3" of "model.layers.3.mlp.up_proj").

    A site outside numbered layers is a layer of its own.
    """
    match = _LAYER.match(site)
    return match[0] if match else site


def _check(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"gate.{name} {value!r} is not one of {', '.join(allowed)}")
