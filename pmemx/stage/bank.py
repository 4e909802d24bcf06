"""What later stages read of earlier ones: the blocks of a run, and its trained gates."""

import json
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

from pmemx.core.bank import BankShape, ExpertBank
from pmemx.core.errors import ConfigError, IncompatibleBlock
from pmemx.core.gate import Gate
from pmemx.core.store import Store

GateFactory = Callable[[BankShape], Gate]
"""A gate's class with its settings, waiting for the bank it will serve."""


def course_digests(folder: Path, kind: str) -> dict[str, list[str]]:
    """Digests of the versions that a curriculum made in this run, by the name of the block."""
    path = folder / "blocks.json"
    if not path.exists():
        raise ConfigError(f"{folder} holds no blocks.json; put distill before this stage in the plan")
    return json.loads(path.read_text(encoding="utf-8")).get(kind, {})


def load_bank(store: Store, folder: Path) -> ExpertBank:
    """The experts that this run distilled, in the order of the corpus."""
    experts = course_digests(folder, "experts")
    return ExpertBank([store.get(versions[-1]) for versions in experts.values()])


def save_gate(gate: Gate, folder: Path, name: str) -> None:
    """Weights as safetensors, and the experts that the gate was trained for as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in gate.state_dict().items()}, folder / f"{name}.safetensors")
    card = {"class": f"{type(gate).__module__}.{type(gate).__qualname__}", "experts": list(gate.shape.experts)}
    (folder / f"{name}.json").write_text(json.dumps(card, indent=1, ensure_ascii=False), encoding="utf-8")


def load_gate(factory: GateFactory, shape: BankShape, folder: Path, name: str) -> Gate:
    """The gate as trained in this run; one without parameters needs no training.

    Raises ConfigError when it was not trained, IncompatibleBlock when it was trained for other experts.
    """
    gate = factory(shape).eval()
    if not any(True for _ in gate.parameters()):
        return gate
    path = folder / f"{name}.json"
    if not path.exists():
        raise ConfigError(
            f"gate {name!r} is not trained in this run ({folder}); put train_gate before evaluate in the plan, "
            f"and the gate among stage.train_gate.gates"
        )
    experts = json.loads(path.read_text(encoding="utf-8"))["experts"]
    if tuple(experts) != shape.experts:
        raise IncompatibleBlock(
            f"gate {name!r} was trained for {', '.join(experts)}, but the bank holds {', '.join(shape.experts)}; train it again"
        )
    gate.load_state_dict(load_file(folder / f"{name}.safetensors"))
    return gate
