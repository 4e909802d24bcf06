"""Loads: how many decisions fell to each expert in an optimiser step, for a gate whose bias follows them (arXiv:2408.15664)."""

from lightning.pytorch.strategies import Strategy
from torch import Tensor

from pmemx.core.bank import ExpertBank
from pmemx.core.gate import SiteGate
from pmemx.core.routing import Observation


class Loads:
    """Counts by site, of all batches of a step."""

    def __init__(self, gate: SiteGate, bank: ExpertBank) -> None:
        self._gate, self._bank = gate, bank
        self._counts: dict[str, Tensor] = {}

    def count(self, observation: Observation) -> None:
        """Add the decisions of a place that balances itself; those about padding do not count."""
        if self._gate.load_bias(observation.site) is None:
            return
        routing, attended = observation.routing, observation.attended
        heard = attended if routing.index.shape[1] == attended.shape[1] else attended.any(dim=1, keepdim=True)
        counts = routing.index[(routing.weight > 0) & heard[..., None]].bincount(minlength=routing.num_experts)
        load = counts[[self._bank.slot(name) for name in self._gate.shape.experts]]
        before = self._counts.get(observation.site)
        self._counts[observation.site] = load if before is None else before + load

    def settle(self, strategy: Strategy) -> None:
        """Let the gate's bias follow the load of all processes together, and begin the next step at zero."""
        for site, load in self._counts.items():
            total = strategy.reduce(load, reduce_op="sum")
            assert isinstance(total, Tensor)
            self._gate.rebalance(site, total)
        self._counts.clear()
