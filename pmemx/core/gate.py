"""Gates score the experts of a bank; choice 0 is always "no expert"."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pmemx.core.bank import BankShape
from pmemx.core.block import LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.core.vote import Granularity, Mean, Pool

Level = Literal["site", "layer", "model"]
GRANULARITIES: tuple[str, ...] = get_args(Granularity)
NEVER = -1e9
"""The score of a choice that is never taken: no softmax hears it, and yet votes can average and add it."""
_LAYER = re.compile(r".*?\.\d+(?=\.)")


class SiteGate(nn.Module, ABC):
    """Scores at a site, token by token, from what the site reads; how they become decisions is an argument.

    granularity: every "token" decides anew; tokens vote on the "prefix" so far; those of the "prompt" vote once and the
    decision is kept; or those of each "turn" vote with all turns before it (see core.vote.Granularity). level: each "site"
    decides for itself; the first site of a "layer" decides for its layer (arXiv:2402.11455); or the scores of all sites are
    summed for the whole "model", which costs a pass of the base model over the same tokens.
    """

    trains_alone: ClassVar[bool] = False
    """Whether a training row may only choose between its own expert and none (PHATGOOSE trains each gate alone)."""
    choice_rows: ClassVar[tuple[str, ...] | None] = None
    """Entries of the state with one row a choice, where all the rest fits any bank: so a gate grows (`grown`) and what it
    learnt stays. None: what it learnt holds for the experts that it was built for."""
    pool: Pool = Mean()

    def __init__(self, shape: BankShape, *, granularity: Granularity = "token", level: Level = "site") -> None:
        super().__init__()
        _check("granularity", granularity, GRANULARITIES)
        _check("level", level, ("site", "layer", "model"))
        self.shape, self.granularity, self.level = shape, granularity, level

    def load_bias(self, site: str) -> Float[Tensor, " choice"] | None:
        """What is added to the scores of a site to choose, not to weigh (arXiv:2408.15664); None: nothing."""
        return None

    def rebalance(self, site: str, load: Int[Tensor, " expert"]) -> None:
        """Move the load bias after an optimiser step, in which so many decisions taken at the site fell to each expert.

        Called where there is a load bias. A decision that sites share is told once, under the first site that follows it.
        """
        return None

    @abstractmethod
    def forward(self, site: str, x: Float[Tensor, "batch token width_in"]) -> Float[Tensor, "batch token feature"]:
        """What token t says depends on x at t alone: scores, or features that `score` turns into scores.

        Granularity and level are applied to it afterwards.
        """

    def score(
        self, site: str, pooled: Float[Tensor, "batch decision feature"]
    ) -> Float[Tensor, "batch decision choice"]:
        """Scores of a decision from what was pooled; where tokens say scores, these as they are."""
        return pooled

    def score_among(
        self,
        site: str,
        pooled: Float[Tensor, "batch decision feature"],
        barred: Bool[Tensor, "rows choice"] | None,
    ) -> Float[Tensor, "batch decision choice"]:
        """The same where some choices may not be made (one row for all, or a row each); the selection leaves them out.

        For gates in which experts compete before they are selected: a barred expert must not take the place of another.
        """
        return self.score(site, pooled)


class FactorGate(SiteGate, ABC):
    """A gate that reads its experts' factors, and reads an expert again when it is swapped; mostly it needs no training."""

    choice_rows: ClassVar[tuple[str, ...] | None] = ()

    @abstractmethod
    def read_expert(self, expert: int, factors: Mapping[str, LoraFactors]) -> None:
        """Take expert (from 0; its choice is expert + 1) from its factors by site; a site may be missing."""


class SiteExampleGate(SiteGate, ABC):
    """A gate that learns at every site from examples in one pass of the base over them, without gradients."""

    @abstractmethod
    def see(self, site: str, pooled: Float[Tensor, "batch 1 feature"], choice: Int[Tensor, " batch"]) -> None:
        """Take in what prompts of known choice say at a site; the order of examples does not matter."""


class ContextGate(nn.Module, ABC):
    """One decision for all sites, from the hidden states of the base model without experts.

    layer: which hidden states; 0 is the embedding, which costs no pass of the base, -1 the last. Tokens are read one by
    one, what they say is pooled over the token alone, the prefix or the prompt (see SiteGate), and the pool is scored:
    so every gate is causal and goes with a KV cache, whatever its granularity.
    """

    layer: int = 0
    reach: int = 0
    """How many earlier tokens must be seen to read one token: window - 1 of a convolution."""
    pool: Pool = Mean()
    choice_rows: ClassVar[tuple[str, ...] | None] = None
    """See SiteGate."""

    def __init__(self, shape: BankShape, *, granularity: Granularity = "prompt") -> None:
        super().__init__()
        _check("granularity", granularity, GRANULARITIES)
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

    def score_among(
        self,
        pooled: Float[Tensor, "batch token feature"],
        domain: Int[Tensor, " batch"] | None,
        barred: Bool[Tensor, "rows choice"] | None,
    ) -> Float[Tensor, "batch token choice"] | Float[Tensor, "batch token site choice"]:
        """See `SiteGate.score_among`."""
        return self.score(pooled, domain)


class ExampleGate(ContextGate, ABC):
    """A gate that learns from examples in one pass over them, without gradients."""

    @abstractmethod
    def see(self, pooled: Float[Tensor, "batch 1 feature"], choice: Int[Tensor, " batch"]) -> None:
        """Take in what prompts of known choice say; the order of examples does not matter."""


class SearchedGate(ContextGate, ABC):
    """A gate of a few numbers, found on a few examples by a search without gradients."""

    @abstractmethod
    def numbers(self) -> Float[Tensor, " number"]:
        """What the search moves, as it stands: changing it in place changes the gate."""


class DetectorGate(ContextGate, ABC):
    """A gate that learns every expert by itself, from that expert's examples and those of no expert.

    What it keeps of the examples of no expert is part of its state, so that an expert may join later without anybody
    else's examples.
    """

    example_rows: ClassVar[tuple[str, ...]] = ()
    """Entries of the state with as many rows as examples were seen."""

    @abstractmethod
    def note(
        self,
        hidden: Float[Tensor, "batch seen width"],
        inside: Bool[Tensor, "batch token"],
        choice: Int[Tensor, " batch"],
    ) -> None:
        """Take in examples as `read` sees them; tokens that are not inside are padding."""

    @abstractmethod
    def fit(self) -> None:
        """Learn the experts that were noted since the last fit; nothing that is known of the others changes."""


class HeadedGate(ContextGate, ABC):
    """A gate that weighs pieces of an expert one by one: what a site reads and what it puts out fall into `heads` equal
    pieces each, and every piece has scores of its own (arXiv:2211.03831)."""

    heads: int

    @abstractmethod
    def score_heads(
        self, pooled: Float[Tensor, "batch token feature"], domain: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch token site head choice"]:
        """Scores of a decision head by head; see `ContextGate.score`. The selection hears every head alone."""

    def score(
        self, pooled: Float[Tensor, "batch token feature"], domain: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch token site choice"]:
        """The mean over the heads: what losses and traces are told."""
        return self.score_heads(pooled, domain).mean(dim=3)


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
