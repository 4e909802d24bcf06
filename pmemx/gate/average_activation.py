"""Average activation: at every site, the expert whose examples' mean input lies nearest to the token (arXiv:2402.05859)."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.core.errors import ConfigError
from pmemx.core.gate import NEVER, Level, SiteExampleGate
from pmemx.core.vote import Granularity, Mean, Pool

Normalise = Literal["unit", "layer_norm", "none"]


class AverageActivationGate(SiteExampleGate):
    """N(x) . N(c_e), where c_e is the mean of N(x) over the prompts of expert e's examples, as the base reads them.

    The baseline of PHATGOOSE and of mttl ("avg_act"), and the gates of mergekit ("hidden"). normalise: N. "unit" brings to
    length 1, so that the score is a cosine, as mergekit does; "layer_norm" takes the mean away too and brings to length
    sqrt(width), as PHATGOOSE does; "none" leaves x as it is, and c_e alone has length 1, as in mttl. scaled: divide by
    sqrt(width), as PHATGOOSE and mttl do. pool: what an example says, of its tokens; None is their mean, and Last() the last
    token, as in mttl; decisions about a prefix or a prompt pool alike. mttl has each example read by its own expert; here
    the base reads them all.

    Text that needs no expert has a centroid like the others; where no such example was seen, "no expert" scores `abstain`
    at a site, and None never takes it.
    """

    choice_rows: ClassVar[tuple[str, ...] | None] = ("total", "count")

    def __init__(
        self,
        shape: BankShape,
        *,
        granularity: Granularity = "token",
        level: Level = "site",
        normalise: Normalise = "unit",
        scaled: bool = False,
        pool: Pool | None = None,
        abstain: float | None = None,
    ) -> None:
        super().__init__(shape, granularity=granularity, level=level)
        if normalise not in ("unit", "layer_norm", "none"):
            raise ConfigError(f"gate.normalise {normalise!r} is not one of unit, layer_norm, none")
        self.normalise: Normalise = normalise
        self.scaled = scaled
        self.pool = Mean() if pool is None else pool
        self.abstain = NEVER if abstain is None else abstain
        ends = torch.tensor(list(shape.sites.values())).cumsum(dim=0).tolist()
        self._place = {
            site: (number, slice(end - shape.sites[site], end))
            for number, (site, end) in enumerate(zip(shape.sites, ends, strict=True))
        }
        # All sites in one entry, so that a choice is one row. In double precision, so that the order of the examples is
        # lost in rounding.
        self.register_buffer("total", torch.zeros(shape.num_choices, ends[-1], dtype=torch.float64))
        self.register_buffer("count", torch.zeros(shape.num_choices, len(shape.sites), dtype=torch.float64))

    def forward(self, site: str, x: Float[Tensor, "batch token width_in"]) -> Float[Tensor, "batch token feature"]:
        """N(x)."""
        return self._normalised(x.float())

    @torch.no_grad()
    def see(self, site: str, pooled: Float[Tensor, "batch 1 feature"], choice: Int[Tensor, " batch"]) -> None:
        """Add to the sums behind the centroids."""
        number, columns = self._place[site]
        self.get_buffer("total")[:, columns].index_add_(0, choice, pooled[:, 0].double())
        self.get_buffer("count")[:, number].index_add_(0, choice, torch.ones_like(choice, dtype=torch.float64))

    def score(
        self, site: str, pooled: Float[Tensor, "batch decision feature"]
    ) -> Float[Tensor, "batch decision choice"]:
        """Raises ConfigError when an expert has shown no example: its score would mean nothing."""
        number, columns = self._place[site]
        count = self.get_buffer("count")[:, number]
        seen = count > 0
        unseen = [name for name, ready in zip(self.shape.experts, seen[1:].tolist(), strict=True) if not ready]
        if unseen:
            raise ConfigError(
                f"average activation has seen no example of {', '.join(unseen)} at {site!r}; show it prompts of every "
                f"expert (put train_gate before evaluate in the plan, or call `see`)"
            )
        centroid = (self.get_buffer("total")[:, columns] / count.clamp_min(1)[:, None]).float()
        centroid = F.normalize(centroid, dim=-1) if self.normalise == "none" else self._normalised(centroid)
        alike = pooled @ centroid.T
        if self.scaled:
            alike = alike / pooled.shape[-1] ** 0.5
        return torch.where(seen, alike, alike.new_tensor(self.abstain))

    def _normalised(self, x: Tensor) -> Tensor:
        match self.normalise:
            case "unit":
                return F.normalize(x, dim=-1)
            case "layer_norm":
                return F.layer_norm(x, x.shape[-1:])
            case "none":
                return x
