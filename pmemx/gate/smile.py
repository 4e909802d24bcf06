"""SMILE: score an expert by how much of a token lies in the first directions that its update reads (arXiv:2408.10174)."""

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


class SmileGate(FactorGate):
    """|V_e[:, :gate_k]^T x|, where the columns of V_e are the right singular vectors of the update of expert e at the site.

    Between Arrow (gate_k = 1) and SpectR with a flat spectrum (all of them); the size of an update has no say, but an
    expert that gives more directions catches more of any token. Where ranks differ, a gate_k of the lowest rank makes them
    even. Directions beyond the numerical rank are left out; the released code fills them up with arbitrary ones of a full
    SVD. normalise: divide by |x|, so that in a vote every token counts alike. abstain: the score of "no expert" at a site;
    None, as published, never takes it.

    An expert that skips a site, or whose update is zero, scores 0 there: the lowest score, and it adds nothing to a vote.
    """

    def __init__(
        self,
        shape: BankShape,
        *,
        granularity: Granularity = "token",
        level: Level = "site",
        gate_k: int = 16,
        normalise: bool = False,
        abstain: float | None = None,
    ) -> None:
        super().__init__(shape, granularity=granularity, level=level)
        if gate_k < 1:
            raise ConfigError(f"gate.gate_k = {gate_k} keeps no direction; it must be at least 1")
        self.gate_k, self.normalise = gate_k, normalise
        self.abstain = NEVER if abstain is None else abstain
        self._buffers_by_site = {site: f"directions_{i}" for i, site in enumerate(shape.sites)}
        for site, name in self._buffers_by_site.items():
            self.register_buffer(name, torch.zeros(len(shape.experts), 1, shape.sites[site]), persistent=False)

    def directions(self, site: str) -> Float[Tensor, "expert kept width_in"]:
        """V_e[:, :gate_k]^T of every expert; lower ranks are padded with zeros."""
        return self.get_buffer(self._buffers_by_site[site])

    def read_expert(self, expert: int, factors: Mapping[str, LoraFactors]) -> None:
        """See FactorGate."""
        for site, name in self._buffers_by_site.items():
            held = self.directions(site)
            held[expert] = 0
            if site not in factors:
                continue
            found = right_spectrum(factors[site])[1][: self.gate_k]
            if (missing := found.shape[0] - held.shape[1]) > 0:
                held = F.pad(held, (0, 0, 0, missing))
                self.register_buffer(name, held, persistent=False)
            held[expert, : found.shape[0]] = found.to(held)

    def forward(self, site: str, x: Float[Tensor, "batch token width_in"]) -> Float[Tensor, "batch token choice"]:
        """One product with the directions of all experts, and the norm of what each expert's give."""
        directions = self.directions(site)
        x = F.normalize(x.float(), dim=-1) if self.normalise else x.float()
        along = (x @ directions.flatten(0, 1).T).unflatten(-1, directions.shape[:2])
        return F.pad(along.norm(dim=-1), (1, 0), value=self.abstain)
