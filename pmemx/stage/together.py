"""A published mixture whose experts are trained together with their gate, and how a later stage gets one back."""

from dataclasses import dataclass
from pathlib import Path

from pmemx.core.bank import ExpertBank
from pmemx.core.errors import ConfigError
from pmemx.core.gate import Gate
from pmemx.core.mix import Mixing
from pmemx.core.routing import Select
from pmemx.core.store import Store
from pmemx.core.structure import Structure
from pmemx.lit.gate_module import GateLosses
from pmemx.lit.settings import TrainerSettings
from pmemx.lit.together_module import check_losses
from pmemx.stage.bank import GateFactory, course_digests, load_gate


@dataclass(frozen=True, kw_only=True)
class Together:
    """Which experts are born where, who chooses among them, and how both are trained.

    select: in training as when it counts. trainer: None for the stage's.
    """

    structure: Structure
    gate: GateFactory
    select: Select
    losses: GateLosses
    mixing: Mixing = "after"
    trainer: TrainerSettings | None = None

    def __post_init__(self) -> None:
        check_losses(self.losses)


def load_together(
    store: Store, folder: Path, name: str, entry: Together, *, width: int
) -> tuple[ExpertBank, Gate, Select, Mixing]:
    """Bank, gate, selection and mixing of one entry as this run trained it, for `attached`.

    width: of the base's hidden states. Raises ConfigError when the run did not train it, IncompatibleBlock when what was
    trained has another gate.
    """
    trained = course_digests(folder, "together")
    if name not in trained:
        raise ConfigError(
            f"{name!r} is not trained in this run ({folder}); put train_together before evaluate in the plan, and the "
            f"entry into the group together"
        )
    bank = ExpertBank([store.get(digest) for digest in trained[name]], versions=trained[name])
    gate = load_gate(entry.gate, bank.shape(width), folder / "gates" / "together", name)
    return bank, gate, entry.select, entry.mixing
