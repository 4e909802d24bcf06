"""What holds in a pass: which experts each row may use, and what is fixed without asking the gate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pmemx.core.bank import ExpertBank
from pmemx.core.errors import PmemxError
from pmemx.core.gate import Gate
from pmemx.core.mix import Mixing
from pmemx.core.profile import Profile
from pmemx.core.routing import Routing
from pmemx.runtime.cache import Decision, Stamp
from pmemx.runtime.request import Request, by_row
from pmemx.runtime.running import Rules


@dataclass(frozen=True, eq=False)
class Defaults:
    """What holds where a request says nothing; serial tells one setting from the next."""

    serial: int = 0
    active: tuple[str, ...] | None = None
    weights: Mapping[str, float] | None = None


class Rulebook:
    """Requests and defaults by name, as tensors by slot of one bank; what does not change between passes is kept."""

    def __init__(
        self, model: nn.Module, bank: ExpertBank, *, attachment: int, mixing: Mixing, dtype: torch.dtype | None
    ) -> None:
        self._model, self._bank, self._attachment = model, bank, attachment
        self._mixing: Mixing = mixing
        self._dtype = dtype
        self._fixed: tuple[tuple[int, int, bool], Decision] | None = None
        self._ruled: tuple[tuple[object, ...], Stamp, Rules] | None = None

    def rules(
        self, gate: Gate | None, request: Request, defaults: Defaults, profiles: Mapping[str, Profile], rows: int
    ) -> tuple[Stamp, Rules]:
        """What holds in a pass of so many rows, and the stamp of a cache that is built under it.

        Raises PmemxError where a request cannot be met: another number of rows, or `active` where no gate decides.
        """
        # The same for every step of a generation, and linear in the number of experts. A tensor that was made in inference
        # mode is of no use to a pass that records gradients.
        inference = torch.is_inference_mode_enabled()
        state = (self._bank.writes, gate, defaults, profiles, request.active, request.profiles, rows, inference)
        known = self._ruled
        if known is None or any(was is not now and was != now for was, now in zip(known[0], state, strict=True)):
            stamp = self._stamp(gate, request, defaults, profiles)
            known = self._ruled = (state, stamp, self._rules(gate, request, defaults, profiles, rows))
        return known[1], known[2]

    def _stamp(self, gate: Gate | None, request: Request, defaults: Defaults, profiles: Mapping[str, Profile]) -> Stamp:
        asked = None
        names = gate.shape.experts if gate is not None else ()
        if request.profiles is not None:
            asked = tuple(None if name is None else profiles[name] for name in request.profiles)
            names += tuple(name for profile in asked if profile is not None for name in profile.weights)
        if defaults.weights is not None:
            names += (*defaults.weights,)
        present = {r.name: r.revision for r in self._bank.residents if r is not None}
        revisions = tuple((name, present.get(name, 0)) for name in dict.fromkeys(names))
        return Stamp(self._attachment, defaults.serial, request.active, asked, revisions)

    def _rules(
        self, gate: Gate | None, request: Request, defaults: Defaults, profiles: Mapping[str, Profile], rows: int
    ) -> Rules:
        barred = slots = None
        if gate is not None:
            barred, slots = self._choices(gate, request, defaults, rows)
        profiled = self._profiled(request, defaults, profiles, rows)
        fixed = self._fixed_decision(defaults) if profiled is None else None
        if profiled is not None and (gate is None or defaults.weights is not None):
            fixed = Decision(None, profiled[1])
        elif fixed is None and gate is None:
            fixed = Decision(None, self._nothing(rows))
        if request.active is not None and fixed is not None:
            raise PmemxError(
                "`active` restricts a gate's choice, but here no gate decides; weigh(None), or use profiles"
            )
        return Rules(
            barred=barred,
            slots=slots,
            profiled=profiled,
            fixed=fixed,
            num_slots=len(self._bank),
            rows=self._bank.num_rows,
            mixing=self._mixing,
            dtype=self._dtype,
        )

    def _choices(
        self, gate: Gate, request: Request, defaults: Defaults, rows: int
    ) -> tuple[Tensor | None, Tensor | None]:
        experts, residents = gate.shape.experts, self._bank.residents
        position = {r.name: slot for slot, r in enumerate(residents) if r is not None}
        slots = [position.get(name, 0) for name in experts]
        ordered = len(experts) == len(residents) and slots == list(range(len(experts)))
        active = request.active if request.active is not None else (defaults.active,)
        barred = None
        if any(row is not None for row in active) or any(name not in position for name in experts):
            allowed = [position.keys() if row is None else set(row) & position.keys() for row in active]
            table = [[False, *(name not in row for name in experts)] for row in allowed]
            table = table if len(table) == 1 else by_row("active", table, rows)
            barred = torch.tensor(table, device=self._device)
        return barred, None if ordered else torch.tensor(slots, device=self._device)

    def _profiled(
        self, request: Request, defaults: Defaults, profiles: Mapping[str, Profile], rows: int
    ) -> tuple[Tensor, Routing] | None:
        if request.profiles is None:
            return None
        asked = by_row("profiles", request.profiles, rows)
        chosen = [defaults.weights if name is None else profiles[name].weights for name in asked]
        which = torch.tensor([weights is not None for weights in chosen], device=self._device)
        return which, self._weighed([weights or {} for weights in chosen])

    def _weighed(self, by_row: Sequence[Mapping[str, float]]) -> Routing:
        """Weights by name, as a routing of as many rows."""
        widest = max(len(weights) for weights in by_row)
        index = torch.zeros(len(by_row), 1, widest, dtype=torch.long)
        weight = torch.zeros(len(by_row), 1, widest)
        for row, weights in enumerate(by_row):
            for number, (name, value) in enumerate(weights.items()):
                index[row, 0, number], weight[row, 0, number] = self._bank.slot(name), value
        return Routing(index.to(self._device), weight.to(self._device), len(self._bank))

    def _nothing(self, rows: int) -> Routing:
        index = torch.zeros(rows, 1, 0, dtype=torch.long, device=self._device)
        return Routing(index, index.float(), len(self._bank))

    def _fixed_decision(self, defaults: Defaults) -> Decision | None:
        if defaults.weights is None:
            return None
        state = defaults.serial, self._bank.writes, torch.is_inference_mode_enabled()
        known = self._fixed
        if known is None or known[0] != state:
            known = self._fixed = (state, Decision(None, self._weighed([defaults.weights])))
        return known[1]

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device
