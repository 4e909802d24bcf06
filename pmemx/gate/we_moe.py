"""WE-MoE: a small network at every layer says with which weights the experts merge for a prompt (arXiv:2402.00433)."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.core.errors import ConfigError
from pmemx.core.gate import NEVER, Level, SiteGate
from pmemx.core.vote import Granularity
from pmemx.gate.sharing import shared


class WeMoeGate(SiteGate):
    """The mean over the prompt of W_2 relu(W_1 h_t + b_1) + b_2, raw weights for select=raw.

    The mean is taken of the network's outputs, as the released code does. Weights start at `start`, the constant of task
    arithmetic, up to the code's initial noise of 0.01 in both matrices. The paper routes the MLP of a layer and merges the
    rest with that constant for good; here the sites of a layer that the experts adapt share a decision, on what the first
    of them reads. Trained by the entropy of the model's predictions, the gate sees no label.
    """

    def __init__(
        self,
        shape: BankShape,
        *,
        granularity: Granularity = "prompt",
        level: Level = "layer",
        start: float = 0.3,
    ) -> None:
        super().__init__(shape, granularity=granularity, level=level)
        if level == "model":
            raise ConfigError(
                "gate.level 'model' adds up what all sites say, but these are weights; use 'layer' or 'site'"
            )
        self._number, widths = shared(shape, level)
        self.networks = nn.ModuleList(_network(width, len(shape.experts), start) for width in widths)

    def forward(self, site: str, x: Float[Tensor, "batch token width_in"]) -> Float[Tensor, "batch token choice"]:
        """What the token says of every expert's weight; "no expert" is not a choice."""
        network = self.networks[self._number[site]]
        return F.pad(network(x.to(next(network.parameters()).dtype)), (1, 0), value=NEVER)


def _network(width: int, num_experts: int, start: float) -> nn.Sequential:
    inner, outer = nn.Linear(width, width), nn.Linear(width, num_experts)
    for layer, bias in ((inner, 0.0), (outer, start)):
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.constant_(layer.bias, bias)
    return nn.Sequential(inner, nn.ReLU(), outer)
