"""RouterLoRA: attention of the token to what each expert puts out, for banks of any size (RAMoLE, arXiv:2406.16989)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.core.block import LoraFactors
from pmemx.core.errors import ConfigError, IncompatibleBlock
from pmemx.core.gate import NEVER, FactorGate, Level
from pmemx.core.low_rank import energy
from pmemx.core.vote import Granularity


class RouterLoraGate(FactorGate):
    """(A_r x) . (B_r dW_e x) / sqrt(rank): the query is the token's, the key is the expert's output for it.

    A_r and B_r are a LoRA's factors a site (B_r transposed), A_r drawn and B_r zero at first, so that all experts start
    alike. They know no expert: experts may join after training and leave the scores of the others as they are, to the last
    bit if there were several and none of the new ones has the highest rank.

    width_out: the widest output of a site; None stands for the widest input that the bank knows, which in a transformer is
    enough unless only layers that widen are adapted. normalise: divide dW_e by its Frobenius norm; as published it is not,
    and an expert 20 times larger wins or loses almost every token. abstain: the score of "no expert"; None, as published,
    never takes it. An expert that skips a site, or whose update is zero, scores 0 there.
    """

    choice_rows: ClassVar[tuple[str, ...] | None] = ()

    def __init__(
        self,
        shape: BankShape,
        *,
        granularity: Granularity = "token",
        level: Level = "site",
        rank: int = 8,
        width_out: int | None = None,
        normalise: bool = True,
        abstain: float | None = None,
    ) -> None:
        super().__init__(shape, granularity=granularity, level=level)
        if rank < 1:
            raise ConfigError(f"gate.rank = {rank} must be at least 1")
        self.rank, self.width_out = rank, width_out or max(shape.width, *shape.sites.values())
        self.normalise, self.abstain = normalise, NEVER if abstain is None else abstain
        self._index = {site: i for i, site in enumerate(shape.sites)}
        # A LoRA's first A: uniform, with a variance of 1 / (3 width).
        self.queries = nn.ParameterList(
            torch.empty(rank, width).uniform_(-(width**-0.5), width**-0.5) for width in shape.sites.values()
        )
        self.keys = nn.ParameterList(torch.zeros(rank, self.width_out) for _ in shape.sites)
        for i, width in enumerate(shape.sites.values()):
            self.register_buffer(f"down_{i}", torch.zeros(len(shape.experts), 1, width), persistent=False)
            self.register_buffer(f"up_{i}", torch.zeros(len(shape.experts), 1, self.width_out), persistent=False)

    def read_expert(self, expert: int, factors: Mapping[str, LoraFactors]) -> None:
        """See FactorGate. Raises IncompatibleBlock when a site puts out more than width_out numbers."""
        for site, i in self._index.items():
            found = factors.get(site)
            if found is not None and found.B.shape[0] > self.width_out:
                raise IncompatibleBlock(
                    f"{site!r} puts out {found.B.shape[0]} numbers, more than the gate has keys for ({self.width_out}); "
                    f"build it with gate.width_out={found.B.shape[0]} and train it again"
                )
            self._hold(f"down_{i}", expert, None if found is None else found.A)
            self._hold(f"up_{i}", expert, None if found is None else self._scale(found) * found.B.T)

    def _scale(self, factors: LoraFactors) -> float:
        size = energy(factors) ** 0.5 if self.normalise else 1.0
        return factors.scale / size if size else 0.0

    def _hold(self, name: str, expert: int, rows: Float[Tensor, "rank width"] | None) -> None:
        held = self.get_buffer(name)
        if rows is not None and (missing := rows.shape[0] - held.shape[1]) > 0:
            held = F.pad(held, (0, 0, 0, missing))
            self.register_buffer(name, held, persistent=False)
        held[expert] = 0
        if rows is not None:
            held[expert, : rows.shape[0], : rows.shape[1]] = rows.to(held)

    def forward(self, site: str, x: Float[Tensor, "batch token width_in"]) -> Float[Tensor, "batch token choice"]:
        """q . (B_r B_e) z_e with z_e = A_e x: keys stay in the experts' ranks, and no output is computed."""
        i = self._index[site]
        down, up = self.get_buffer(f"down_{i}"), self.get_buffer(f"up_{i}")
        x = x.to(down.dtype)

        # A product an expert: in one for all, the rounding of a score would depend on how many experts there are.
        def by_expert(left: Tensor, right: Tensor) -> Tensor:
            return torch.bmm(left.expand(len(down), -1, -1), right.expand(len(down), -1, -1))

        tokens = x.flatten(0, 1)
        low = by_expert(tokens, down.mT)
        keys = by_expert(self.keys[i], up.mT)
        scores = (low * by_expert(tokens @ self.queries[i].T, keys)).sum(dim=-1) / self.rank**0.5
        return F.pad(scores.T.unflatten(0, x.shape[:2]), (1, 0), value=self.abstain)
