"""A published way of composing experts as one setting: its gate, how scores decide, what weights mix, how it is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pmemx.core.bank import ExpertBank
from pmemx.core.base_model import LoadedBase
from pmemx.core.errors import ConfigError
from pmemx.core.mix import Mixing
from pmemx.core.routing import Select
from pmemx.core.store import Store
from pmemx.core.transform import Transform
from pmemx.lit.gate_module import GateLosses
from pmemx.lit.settings import TrainerSettings
from pmemx.stage.bank import GateFactory


@dataclass(frozen=True, kw_only=True)
class Composition:
    """select, mixing: when it counts. What is null in training is the stage's: the selection, which passes gradients to all
    scores, the losses, the trainer. transforms: what is done to the bank first, in order."""

    gate: GateFactory
    select: Select
    mixing: Mixing = "after"
    train_select: Select | None = None
    losses: GateLosses | None = None
    trainer: TrainerSettings | None = None
    transforms: Sequence[Transform] = ()

    def __post_init__(self) -> None:
        if not self.select.independent:
            raise ConfigError(
                f"select = {type(self.select).__name__} answers a row by what else is in its batch; give it as train_select, "
                f"and another selection for when it counts"
            )

    def bank(self, store: Store, digests: Sequence[str], base: LoadedBase) -> ExpertBank:
        """The experts of these versions, transformed; they keep their names."""
        blocks = tuple(store.get(digest) for digest in digests)
        for transform in self.transforms:
            blocks = transform(blocks, base.model)
        return ExpertBank(blocks, versions=digests if not self.transforms else None)


def all_compositions(
    gates: Mapping[str, GateFactory | None], compositions: Mapping[str, Composition], *, select: Select, mixing: Mixing
) -> dict[str, Composition]:
    """Gates that decide and mix as their stage says (null: left out), and compositions that say so themselves, by name."""
    plain = {
        name: Composition(gate=gate, select=select, mixing=mixing) for name, gate in gates.items() if gate is not None
    }
    return plain | dict(compositions)
