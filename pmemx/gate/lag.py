"""LAG: Arrow retrieves a few experts, SpectR chooses among them (arXiv:2507.05346)."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.core.block import LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.core.gate import NEVER, FactorGate, Level
from pmemx.core.vote import Granularity
from pmemx.gate.arrow import ArrowGate
from pmemx.gate.spectr import SpectrGate, Spectrum


class LagGate(FactorGate):
    """The SpectR score where an expert is among the `retrieved` best by Arrow, NEVER where it is not.

    A vote is taken on both scores before anything is retrieved, so that a decision retrieves once, by what all its tokens
    said, and no NEVER is averaged. At level "model" every site retrieves for itself, and who is not retrieved there adds 0
    to the sum, the least a SpectR score can be: one site has no veto.

    retrieved: as many as there are experts, or more, makes SpectR of it; 1 makes Arrow. Experts that tie for the last place
    all come in. spectrum: see SpectrGate; "flat" ranks experts of equal rank as published. normalise: divide by |x|, so
    that in a vote every token counts alike. abstain: the score of "no expert" at a site; None, as published, never takes it.

    The paper retrieves so as not to load a library that does not fit in memory. Here the bank is in memory, and the scores
    of all experts are one product: what is kept of LAG is its choice, not its saving. Its two libraries, of tasks and of
    knowledge, which are routed apart, are two banks.
    """

    def __init__(
        self,
        shape: BankShape,
        *,
        granularity: Granularity = "token",
        level: Level = "site",
        retrieved: int = 5,
        spectrum: Spectrum = "flat",
        normalise: bool = False,
        abstain: float | None = None,
    ) -> None:
        super().__init__(shape, granularity=granularity, level=level)
        if retrieved < 1:
            raise ConfigError(f"gate.retrieved = {retrieved} leaves nothing to choose from; it must be at least 1")
        self.retrieved = retrieved
        self.abstain = NEVER if abstain is None else abstain
        self.arrow = ArrowGate(shape, normalise=normalise)
        self.spectr = SpectrGate(shape, spectrum=spectrum, normalise=normalise)

    def read_expert(self, expert: int, factors: Mapping[str, LoraFactors]) -> None:
        """See FactorGate."""
        self.arrow.read_expert(expert, factors)
        self.spectr.read_expert(expert, factors)

    def forward(self, site: str, x: Float[Tensor, "batch token width_in"]) -> Float[Tensor, "batch token feature"]:
        """Arrow's scores of all experts, then SpectR's."""
        return torch.cat([self.arrow(site, x)[..., 1:], self.spectr(site, x)[..., 1:]], dim=-1)

    def score(
        self, site: str, pooled: Float[Tensor, "batch decision feature"]
    ) -> Float[Tensor, "batch decision choice"]:
        """Retrieve, then rank."""
        return self.score_among(site, pooled, None)

    def score_among(
        self,
        site: str,
        pooled: Float[Tensor, "batch decision feature"],
        barred: Bool[Tensor, "rows choice"] | None,
    ) -> Float[Tensor, "batch decision choice"]:
        """See SiteGate: a barred expert is not retrieved."""
        near, rank = pooled.chunk(2, dim=-1)
        if barred is not None:
            near = near.masked_fill(barred[:, None, 1:], float("-inf"))
        last = near.topk(min(self.retrieved, near.shape[-1]), dim=-1).values[..., -1:]
        rank = rank.masked_fill(near < last, 0.0 if self.level == "model" else NEVER)
        return F.pad(rank, (1, 0), value=self.abstain)
