"""Which way of computing a token-level routing is the cheapest: what the planner's constants stand on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from pmemx.core.bank import ExpertBank
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.mix import DenseMix, Mix, PaddedMix, SegmentMix, plan
from pmemx.core.routing import Routing

from .setting import Setting
from .timing import Spread, interleaved

STRATEGIES: dict[str, Callable[[Routing], Mix]] = {
    "DenseMix": lambda routing: DenseMix(routing, "after"),
    "SegmentMix": SegmentMix,
    "PaddedMix": PaddedMix,
}


@dataclass(frozen=True)
class Cell:
    """cost: of the experts at the seven sites of a layer, each with a plan of its own, in costs of their linear layers.

    used: experts with at least one token. planned: what plan() would choose.
    """

    experts: int
    chosen: int
    tokens: int
    used: int
    dtype: str
    cost: dict[str, Spread]
    planned: str

    @property
    def regret(self) -> float:
        """Cost of the planned strategy over that of the cheapest, minus one."""
        return self.cost[self.planned].median / min(spread.median for spread in self.cost.values()) - 1


def cells(setting: Setting, dtype: str) -> list[Cell]:
    """Every number of experts, of chosen ones, and of tokens."""
    return [
        _cell(setting, experts, chosen, tokens, dtype)
        for experts in setting.strategy_experts
        for chosen in setting.strategy_chosen
        for tokens in setting.strategy_tokens
        # Where bfloat16 has no fast product, as on a processor without AMX, the rest would take an hour.
        if chosen < experts and (dtype == "float32" or tokens * experts <= 2**14)
    ]


def _cell(setting: Setting, experts: int, chosen: int, tokens: int, dtype: str) -> Cell:
    generator = torch.Generator().manual_seed(experts + chosen + tokens)
    kind = getattr(torch, dtype)
    hidden, inner = setting.hidden, setting.intermediate
    widths = {"qkvo": (hidden, hidden, 4), "gate_up": (hidden, inner, 2), "down": (inner, hidden, 1)}

    def block(number: int) -> CapabilityBlock:
        draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
        factors = {
            name: LoraFactors(draw(setting.rank, a), draw(b, setting.rank), 1.0) for name, (a, b, _) in widths.items()
        }
        return CapabilityBlock(BlockCard(f"e{number}", "", ""), factors)

    bank = ExpertBank([block(number) for number in range(experts)], dtype=kind)
    index = torch.stack([torch.randperm(experts, generator=generator)[:chosen] for _ in range(tokens)])[None]
    routing = Routing(index, torch.rand(1, tokens, chosen, generator=generator), experts)
    uses = [number for number, (_, _, times) in enumerate(widths.values()) for _ in range(times)]
    sites = [site for _, site in bank.items()]
    layers = [nn.Linear(a, b, bias=False, dtype=kind) for a, b, _ in widths.values()]
    x = [torch.randn(1, tokens, a, generator=generator).to(kind) for a, _, _ in widths.values()]
    y = [torch.zeros(1, tokens, b, dtype=kind) for _, b, _ in widths.values()]

    def linear() -> None:
        for number in uses:
            layers[number](x[number])

    def with_plan(make: Callable[[Routing], Mix]) -> Callable[[], None]:
        def add() -> None:
            for number in uses:
                make(routing).add(y[number], x[number], sites[number])

        return add

    parts = {"linear": linear, **{name: with_plan(make) for name, make in STRATEGIES.items()}}
    with torch.no_grad():
        sums = [make(routing).add(torch.zeros_like(y[0]), x[0], sites[0]).float() for make in STRATEGIES.values()]
        assert all((one - sums[0]).abs().max() <= 1e-2 * sums[0].abs().max() for one in sums)
        times = interleaved(parts, setting.strategy_rounds)
        planned = type(plan(routing, rows=bank.num_rows, dtype=kind)).__name__
    cost = {name: times.processor_ratio(name, "linear") for name in STRATEGIES}
    return Cell(experts, chosen, tokens, int(index.unique().numel()), dtype, cost, planned)
