"""SpectR: score an expert by how much its update would move the token, |S_e V_e^T x| (arXiv:2504.03454)."""

from collections.abc import Mapping
from typing import Literal

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

Spectrum = Literal["frobenius", "spectral", "flat", "raw"]


class SpectrGate(FactorGate):
    """|f(S_e) V_e^T x|, where U_e S_e V_e^T is the update of expert e at the site.

    spectrum: f. "raw" is the paper's S, under which an expert 20 times larger captures everything; "frobenius" divides
    it by its norm, "spectral" by its largest value; "flat" leaves the directions alone, each of equal weight and norm 1
    together, which ranks experts of equal rank as the paper's released code and SMILE (arXiv:2408.10174) do.
    normalise: divide by |x|, so that in a vote every token counts alike. abstain: the score of "no expert" at a site;
    None, as published, never takes it.

    An expert that skips a site, or whose update is zero, scores 0 there: the lowest score, and it adds nothing to a vote.
    """

    def __init__(
        self,
        shape: BankShape,
        *,
        granularity: Granularity = "token",
        level: Level = "site",
        spectrum: Spectrum = "frobenius",
        normalise: bool = False,
        abstain: float | None = None,
    ) -> None:
        super().__init__(shape, granularity=granularity, level=level)
        if spectrum not in ("frobenius", "spectral", "flat", "raw"):
            raise ConfigError(f"gate.spectrum {spectrum!r} is not one of frobenius, spectral, flat, raw")
        self.spectrum, self.normalise = spectrum, normalise
        self.abstain = NEVER if abstain is None else abstain
        self._buffers_by_site = {site: f"directions_{i}" for i, site in enumerate(shape.sites)}
        for site, name in self._buffers_by_site.items():
            self.register_buffer(name, torch.zeros(len(shape.experts), 1, shape.sites[site]), persistent=False)

    def directions(self, site: str) -> Float[Tensor, "expert rank width_in"]:
        """f(S_e) V_e^T of every expert; lower ranks are padded with zeros."""
        return self.get_buffer(self._buffers_by_site[site])

    def read_expert(self, expert: int, factors: Mapping[str, LoraFactors]) -> None:
        """See FactorGate."""
        for site, name in self._buffers_by_site.items():
            held = self.directions(site)
            found = self._weighted(factors[site]) if site in factors else held.new_zeros(0, held.shape[2])
            if (missing := found.shape[0] - held.shape[1]) > 0:
                held = F.pad(held, (0, 0, 0, missing))
                self.register_buffer(name, held, persistent=False)
            held[expert] = 0
            held[expert, : found.shape[0]] = found.to(held)

    def _weighted(self, factors: LoraFactors) -> Tensor:
        values, vectors = right_spectrum(factors)
        match self.spectrum:
            case "frobenius":
                values = values / values.norm()
            case "spectral":
                values = values / values[:1]
            case "flat":
                values = torch.full_like(values, len(values) ** -0.5) if len(values) else values
            case "raw":
                pass
        return values[:, None] * vectors

    def forward(self, site: str, x: Float[Tensor, "batch token width_in"]) -> Float[Tensor, "batch token choice"]:
        """One product with the directions of all experts, and the norm of what each expert's give."""
        directions = self.directions(site)
        x = F.normalize(x.float(), dim=-1) if self.normalise else x.float()
        along = (x @ directions.flatten(0, 1).T).unflatten(-1, directions.shape[:2])
        return F.pad(along.norm(dim=-1), (1, 0), value=self.abstain)
