"""What later stages read of earlier ones: the blocks of a run, and its trained gates."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from pmemx.core.atomic import write_whole
from pmemx.core.bank import BankShape, ExpertBank
from pmemx.core.errors import ConfigError, CorruptBlock, IncompatibleBlock
from pmemx.core.gate import ContextGate, DetectorGate, ExampleGate, Gate, SearchedGate, SiteExampleGate, SiteGate
from pmemx.core.store import Store

GateFactory = Callable[[BankShape], Gate]
"""A gate's class with its settings, waiting for the bank it will serve."""


def course_digests(folder: Path, kind: str) -> dict[str, list[str]]:
    """Digests of the versions that a curriculum made in this run, by the name of the block."""
    path = folder / "blocks.json"
    if not path.exists():
        raise ConfigError(f"{folder} holds no blocks.json; put distill before this stage in the plan")
    return json.loads(path.read_text(encoding="utf-8")).get(kind, {})


def note_course(folder: Path, kind: str, digests: dict[str, list[str]]) -> None:
    """Add what a later stage made to the blocks that course_digests finds."""
    note_blocks(folder, {kind: digests})


def note_blocks(folder: Path, made: Mapping[str, Mapping[str, list[str]]]) -> None:
    """Write down the versions of the blocks of some curricula, by curriculum and name; those of others stay."""
    path = folder / "blocks.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_whole(path, json.dumps({**known, **made}, indent=1, ensure_ascii=False).encode())


def load_bank(store: Store, folder: Path) -> ExpertBank:
    """The experts that this run distilled, in the order of the corpus."""
    digests = [versions[-1] for versions in course_digests(folder, "experts").values()]
    return ExpertBank([store.get(digest) for digest in digests], versions=digests)


def needs_training(gate: Gate) -> bool:
    """Whether a gate must learn before it serves: it has weights, or it waits for examples.

    What a gate reads from the bank's factors needs neither training nor a file.
    """
    shown = isinstance(gate, ExampleGate | SiteExampleGate | SearchedGate | DetectorGate)
    return shown or any(parameter.requires_grad for parameter in gate.parameters())


@dataclass(frozen=True)
class Learnt:
    """How a gate came to know what it knows. work: digest of all that it learnt from and how. seconds: of wall time.

    experts: digests of the versions that it learnt to choose from, in the order of its choices; empty where nobody noted them.
    """

    work: str
    accuracy: float
    seconds: float
    parameters: int
    experts: tuple[str, ...]


def save_gate(gate: Gate, folder: Path, name: str, learnt: Learnt | None = None) -> None:
    """Its state as safetensors, and as JSON what the state was made for and how it was learnt.

    How its scores became decisions is noted too, but does not bind: a gate may serve at another granularity or level.
    """
    folder.mkdir(parents=True, exist_ok=True)
    level = gate.level if isinstance(gate, SiteGate) else None
    card = _card(gate) | {"granularity": gate.granularity, "level": level, "learnt": learnt and asdict(learnt)}
    state = {key: value.contiguous() for key, value in gate.state_dict().items()}
    # Without its card for the moment in which they would not belong together.
    (folder / f"{name}.json").unlink(missing_ok=True)
    write_whole(folder / f"{name}.safetensors", save(state))
    write_whole(folder / f"{name}.json", json.dumps(card, indent=1, ensure_ascii=False).encode())


def gate_learnt(folder: Path, name: str) -> Learnt | None:
    """How a gate of this run was learnt; None where it was not, or where nobody noted how as this version does."""
    path = folder / f"{name}.json"
    try:
        return _learnt_of(_read_card(path), name) if path.exists() else None
    except (CorruptBlock, IncompatibleBlock):
        return None


def load_gate(factory: GateFactory, shape: BankShape, folder: Path, name: str, *, versions: Sequence[str] = ()) -> Gate:
    """The gate as trained in this run, or as built where it needs no training.

    versions: digests of the experts that it is to choose from, in order; empty for any. Raises ConfigError when it was not
    trained, IncompatibleBlock when what was trained is another gate, or one for another bank or base, or for other
    versions of the experts.
    """
    gate = factory(shape).eval()
    if not needs_training(gate):
        return gate
    path = folder / f"{name}.json"
    if not path.exists():
        raise ConfigError(
            f"gate {name!r} is not trained in this run ({folder}); put train_gate before evaluate in the plan, "
            f"and the gate among stage.train_gate.gates"
        )
    trained, here = _read_card(path), _card(gate)
    for fact, value in here.items():
        if trained.get(fact) != value:
            raise IncompatibleBlock(
                f"gate {name!r} was trained for {fact} {_unlike(trained.get(fact), value)}, "
                f"but here that is {_unlike(value, trained.get(fact))}; train it again"
            )
    learnt = _learnt_of(trained, name)
    if versions and learnt is not None and learnt.experts and learnt.experts != tuple(versions):
        pairs = zip(shape.experts, learnt.experts, versions, strict=True)
        raise IncompatibleBlock(
            f"gate {name!r} was trained over other versions of {', '.join(e for e, old, new in pairs if old != new)}; put "
            f"train_gate before evaluate in the plan, which trains it again"
        )
    state = _read_state(folder / f"{name}.safetensors")
    for key in gate.example_rows if isinstance(gate, DetectorGate) else ():
        if key in state:
            gate.register_buffer(key, torch.zeros_like(state[key]))
    expected = gate.state_dict()
    shapes = {key: list(value.shape) for key, value in state.items()}
    for key in sorted(shapes.keys() | expected.keys()):
        wanted = list(expected[key].shape) if key in expected else None
        if shapes.get(key) != wanted:
            raise IncompatibleBlock(
                f"gate {name!r} was trained with other settings: {key} is {shapes.get(key)} in the file and {wanted} "
                f"here; give it the settings it was trained with, or train it again"
            )
    gate.load_state_dict(state)
    return gate


def _card(gate: Gate) -> dict[str, object]:
    """What a state belongs to. Sites and experts are ordered: a gate may know them by number."""
    return {
        "class": f"{type(gate).__module__}.{type(gate).__qualname__}",
        "experts": list(gate.shape.experts),
        "sites": [[site, width] for site, width in gate.shape.sites.items()],
        "width": gate.shape.width,
        "layer": gate.layer if isinstance(gate, ContextGate) else None,
    }


def _read_card(path: Path) -> Mapping[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CorruptBlock(f"{path} is not JSON (line {error.lineno}: {error.msg}); train the gate again") from None


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise CorruptBlock(f"{path} holds no state of a gate ({error}); train the gate again") from error


def _learnt_of(card: Mapping[str, Any], name: str) -> Learnt | None:
    found = card.get("learnt")
    if not found:
        return None
    known = {field.name for field in fields(Learnt)}
    # Before versions of the experts were noted, a gate said nothing of them.
    if unlike := (found.keys() | {"experts"}) ^ known:
        raise IncompatibleBlock(
            f"gate {name!r} was saved by another version of pmemx: it differs in {', '.join(sorted(unlike))}; train it again"
        )
    return Learnt(**found | {"experts": tuple(found.get("experts", ()))})


def _unlike(value: object, other: object) -> object:
    """What one list has and the other has not, so that a message about hundreds of sites can be read."""
    if not isinstance(value, list) or not isinstance(other, list):
        return value
    return [item for item in value if item not in other][:4] or f"{value[:4]}, in that order, {len(value)} in all"
