"""Arrow: score an expert by how far a token lies along the direction that its update stretches most (arXiv:2405.11157)."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.core.block import LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.core.gate import NEVER, FactorGate, Level
from pmemx.core.spectrum import right_spectrum
from pmemx.core.vote import Granularity


class ArrowGate(FactorGate):
    """|v_e . x| with v_e the top right singular vector of B_e A_e: a unit vector, so the size of an update has no say.

    normalise: divide by |x|. Within a token the ranking stays, but |x| no longer acts as an inverse temperature, and in
    a vote every token counts alike. abstain: the score of "no expert" at a site; None, as published, never takes it.
    power_iterations: None finds v_e exactly; a number estimates it as PEFT 0.21 does in 15, from a start drawn with
    `seed`, and is here for comparison only (15 are not enough: |cos| to the exact vector falls to 0.9).

    An expert that skips a site, or whose update is zero, scores 0 there: the lowest score, and it adds nothing to a vote.
    """

    def __init__(
        self,
        shape: BankShape,
        *,
        granularity: Granularity = "token",
        level: Level = "site",
        normalise: bool = False,
        abstain: float | None = None,
        power_iterations: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(shape, granularity=granularity, level=level)
        if power_iterations is not None and power_iterations < 1:
            raise ConfigError(
                f"gate.power_iterations = {power_iterations} must be at least 1, or null for the exact vector"
            )
        self.normalise, self.power_iterations, self.seed = normalise, power_iterations, seed
        self.abstain = NEVER if abstain is None else abstain
        self._buffers_by_site = {site: f"prototypes_{i}" for i, site in enumerate(shape.sites)}
        for site, name in self._buffers_by_site.items():
            self.register_buffer(name, torch.zeros(len(shape.experts), shape.sites[site]), persistent=False)

    def prototypes(self, site: str) -> Float[Tensor, "expert width_in"]:
        """v_e of every expert; their signs have no meaning."""
        return self.get_buffer(self._buffers_by_site[site])

    def read_expert(self, expert: int, factors: Mapping[str, LoraFactors]) -> None:
        """See FactorGate."""
        for site in self.shape.sites:
            held = self.prototypes(site)[expert]
            held.zero_()
            if site not in factors:
                continue
            if self.power_iterations is None:
                found = right_spectrum(factors[site])[1][:1].sum(dim=0)
            else:
                generator = torch.Generator().manual_seed(self.seed)
                found = top_direction_by_power(factors[site], self.power_iterations, generator)
            held.copy_(found)

    def forward(self, site: str, x: Float[Tensor, "batch token width_in"]) -> Float[Tensor, "batch token choice"]:
        """|x V^T|, where the rows of V are the prototypes."""
        x = F.normalize(x.float(), dim=-1) if self.normalise else x.float()
        return F.pad((x @ self.prototypes(site).T).abs(), (1, 0), value=self.abstain)


def top_direction_by_power(
    factors: LoraFactors, iterations: int, generator: torch.Generator
) -> Float[Tensor, " width_in"]:
    """An estimate of the top right singular vector: v <- A^T (B^T B) A v, brought to length 1, from a random start."""
    A, B = factors.A.float(), factors.B.float()
    v = torch.randn(A.shape[1], generator=generator).to(A.device)
    v = F.normalize(v, dim=0)
    for _ in range(iterations):
        v = F.normalize(A.T @ (B.T @ (B @ (A @ v))), dim=0)
    return v
