"""MoLE: a gate on what the experts themselves put out, with a learnt temperature (arXiv:2404.13628)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.core.block import LoraFactors
from pmemx.core.gate import NEVER, FactorGate, Level
from pmemx.core.vote import Granularity
from pmemx.gate.sharing import shared


class MoleGate(FactorGate):
    """Expert i scores (E(x) / |E(x)|) . e_i / tau, where E(x) stacks the outputs dW_1 x, dW_2 x, ... of all experts.

    The paper flattens the outputs over the sequence, so that e is tied to its length; here one e serves every token, and
    the engine averages over the prompt what tokens say. E is here what the experts add at the deciding site, the first of
    a layer; in the paper it is the output of a whole block.

    e_i is kept as E(q_i), the outputs for a trained input q_i. Nothing is lost: of e only the parts in the experts' column
    spaces count, and every score that some e gives, some q gives too. It takes experts * width_in numbers instead of
    experts^2 * width_out. All experts start at score 0 (q) and tau at 1; tau is kept as its logarithm. abstain: the score of
    "no expert"; None, as published, never takes it.
    """

    choice_rows: ClassVar[tuple[str, ...] | None] = None

    def __init__(
        self,
        shape: BankShape,
        *,
        granularity: Granularity = "prompt",
        level: Level = "layer",
        abstain: float | None = None,
    ) -> None:
        super().__init__(shape, granularity=granularity, level=level)
        self.abstain = NEVER if abstain is None else abstain
        self._number, widths = shared(shape, level)
        self.probes = nn.ParameterList(torch.zeros(len(shape.experts), width) for width in widths)
        self.log_temperatures = nn.Parameter(torch.zeros(len(widths)))
        self._buffers_by_site = {site: f"outputs_{i}" for i, site in enumerate(shape.sites)}
        for site, name in self._buffers_by_site.items():
            self.register_buffer(name, torch.zeros(len(shape.experts), 1, shape.sites[site]), persistent=False)

    def outputs(self, site: str) -> Float[Tensor, "expert rank width_in"]:
        """Maps x to each expert's output in an orthonormal basis of its column space; lower ranks are padded with zeros."""
        return self.get_buffer(self._buffers_by_site[site])

    def read_expert(self, expert: int, factors: Mapping[str, LoraFactors]) -> None:
        """See FactorGate."""
        for site, name in self._buffers_by_site.items():
            held = self.outputs(site)
            found = _coordinates(factors[site]) if site in factors else held.new_zeros(0, held.shape[2])
            if (missing := found.shape[0] - held.shape[1]) > 0:
                held = F.pad(held, (0, 0, 0, missing))
                self.register_buffer(name, held, persistent=False)
            held[expert] = 0
            held[expert, : found.shape[0]] = found.to(held)

    def forward(self, site: str, x: Float[Tensor, "batch token width_in"]) -> Float[Tensor, "batch token choice"]:
        """Products of width rank, summed over the experts: no output of full width is computed."""
        number, outputs = self._number[site], self.outputs(site).flatten(0, 1)
        said = F.normalize(x.to(outputs.dtype) @ outputs.T, dim=-1)
        asked = self.probes[number] @ outputs.T
        return F.pad(said @ asked.T / self.log_temperatures[number].exp(), (1, 0), value=self.abstain)


def _coordinates(factors: LoraFactors) -> Float[Tensor, "rank width_in"]:
    # B = Q R with orthonormal Q, so dW x . dW y = (R A x) . (R A y): the Gram matrix B^T B, without squaring its error.
    return factors.scale * torch.linalg.qr(factors.B.double(), mode="r").R @ factors.A.double()
