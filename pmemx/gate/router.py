"""The plain router of a mixture of experts, softmax(W x), with its experts trained together (arXiv:2404.15159, 2312.09979)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.core.block import LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.core.gate import NEVER, FactorGate, Level, layer_of
from pmemx.core.vote import Granularity


class RouterGate(FactorGate):
    """One matrix a site, without a constant term, over the experts that stand there; there is always an expert.

    Of factors it notes presence alone: an expert that skips a site is never chosen there, and where one expert stands by
    itself its share is 1 (so MixLoRA has one LoRA at every attention site). level "layer" keeps one matrix a layer and
    input width, of which that of the layer's first site serves; whoever stands at any site of a layer may be chosen for it,
    and likewise for the whole model. Until its factors are read an expert counts as standing everywhere.

    init_std: of the normal start. balance_rate: u of the loss-free balance (arXiv:2408.15664), 0 for none: a bias, which
    the selection adds to choose and not to weigh, moves by u after every step, up where an expert was chosen less often
    than the mean expert present, down where more often. The paper adds it to sigmoid affinities in [0, 1]; here it is added to
    scores, as log-odds, so that the same u moves the choice by less.
    """

    choice_rows: ClassVar[tuple[str, ...] | None] = None

    def __init__(
        self,
        shape: BankShape,
        *,
        granularity: Granularity = "token",
        level: Level = "site",
        init_std: float = 0.02,
        balance_rate: float = 0.0,
    ) -> None:
        super().__init__(shape, granularity=granularity, level=level)
        for name, value in (("init_std", init_std), ("balance_rate", balance_rate)):
            if value < 0:
                raise ConfigError(f"gate.{name} = {value} is negative; give 0 or more")
        self.init_std, self.balance_rate = init_std, balance_rate
        widths = {self._key(site): width for site, width in shape.sites.items()}
        self._index = {key: i for i, key in enumerate(widths)}
        self.weights = nn.ParameterList(torch.empty(len(shape.experts), width) for width in widths.values())
        for weight in self.weights:
            nn.init.normal_(weight, std=init_std)
        self._decider = {who: i for i, who in enumerate(dict.fromkeys(map(self._who, shape.sites)))}
        for number in self._decider.values():
            self.register_buffer(f"bias_{number}", torch.zeros(shape.num_choices))
            present = torch.ones(len(shape.experts), dtype=torch.bool)
            self.register_buffer(f"present_{number}", present, persistent=False)

    def _who(self, site: str) -> str:
        """Who decides for a site: it, its layer, or the model; what decides for itself is its own decider."""
        if self.level == "model":
            return ""
        return layer_of(site) if self.level == "layer" else site

    def _key(self, site: str) -> tuple[str, int]:
        return layer_of(site) if self.level == "layer" else site, self.shape.sites[site]

    def _present(self, site: str) -> Tensor:
        return self.get_buffer(f"present_{self._decider[self._who(site)]}")

    def _bias(self, site: str) -> Tensor:
        return self.get_buffer(f"bias_{self._decider[self._who(site)]}")

    def read_expert(self, expert: int, factors: Mapping[str, LoraFactors]) -> None:
        """See FactorGate; the numbers themselves are not read."""
        stands = {self._who(site) for site in self.shape.sites if site in factors}
        for who, number in self._decider.items():
            self.get_buffer(f"present_{number}")[expert] = who in stands

    def load_bias(self, site: str) -> Float[Tensor, " choice"] | None:
        """See SiteGate."""
        return self._bias(site) if self.balance_rate else None

    def rebalance(self, site: str, load: Int[Tensor, " expert"]) -> None:
        """b_e += u sign(mean load - load_e), over the experts present; see SiteGate."""
        present = self._present(site)
        load = load.to(present.device, torch.float32)
        moved = (load[present].mean() - load).sign().masked_fill(~present, 0)
        self._bias(site)[1:] += self.balance_rate * moved

    def forward(self, site: str, x: Float[Tensor, "batch token width_in"]) -> Float[Tensor, "batch token choice"]:
        """W x of the experts present."""
        scores = x.float() @ self.weights[self._index[self._key(site)]].T
        scores = scores.masked_fill(~self._present(site), NEVER)
        return F.pad(scores, (1, 0), value=NEVER)
