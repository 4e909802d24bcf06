"""Gates score the experts of a bank; choice 0 is always "no expert"."""

from abc import ABC, abstractmethod
from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pmemx.core.bank import BankShape
from pmemx.core.errors import ConfigError

Granularity = Literal["token", "prompt"]


class SiteGate(nn.Module, ABC):
    """Scores at every site, from what the site reads.

    granularity "token" decides anew at each token; "prompt" averages the scores over the prompt and keeps them.
    """

    def __init__(self, shape: BankShape, *, granularity: Granularity = "token") -> None:
        super().__init__()
        if granularity not in ("token", "prompt"):
            raise ConfigError(f"gate.granularity {granularity!r} is not one of token, prompt")
        self.shape = shape
        self.granularity = granularity

    @abstractmethod
    def forward(self, site: str, x: Float[Tensor, "batch token width_in"]) -> Float[Tensor, "batch token choice"]:
        """Scores of token t depend on x at t alone, so that cached decoding equals prefill."""


class ContextGate(nn.Module, ABC):
    """One decision per sequence for all sites, from the prompt alone, so that it is causal and survives a KV cache.

    layer says which hidden states of the adapter-free base the gate reads: 0 is the embedding, which costs no extra pass.
    """

    layer: int = 0

    def __init__(self, shape: BankShape) -> None:
        super().__init__()
        self.shape = shape

    @abstractmethod
    def forward(
        self,
        hidden: Float[Tensor, "batch token width"],
        prompt: Bool[Tensor, "batch token"],
        domain: Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch 1 choice"]:
        """Scores by choice. domain is the true choice where it is known (only an oracle reads it), -1 where it is not."""


Gate = SiteGate | ContextGate
