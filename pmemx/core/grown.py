"""A gate for a bank that has grown: what it learnt is kept, bit for bit, and there is room for the new experts."""

import copy

import torch

from pmemx.core.bank import BankShape
from pmemx.core.errors import IncompatibleBlock
from pmemx.core.gate import ContextGate, DetectorGate, Gate


def grown(gate: Gate, built: Gate) -> Gate:
    """`built`, made anew for the larger bank, with what `gate` knows: rows of the state go by the names of the experts.

    The gates must have the same settings. Raises IncompatibleBlock when what the gate learnt holds for its own experts alone
    (`choice_rows` is None), when an expert is missing in the larger bank, or when the settings differ.
    """
    if gate.choice_rows is None or type(gate) is not type(built):
        raise IncompatibleBlock(
            f"what {type(gate).__name__} learnt holds for the experts that it was trained with; train it again for "
            f"{len(built.shape.experts)} experts, or use a gate that grows"
        )
    if isinstance(gate, ContextGate) and isinstance(built, ContextGate) and gate.layer != built.layer:
        raise IncompatibleBlock(
            f"the gate learnt from layer {gate.layer}, the new one reads layer {built.layer}; build it with the settings of "
            f"the old one"
        )
    # In order: a gate may know its sites by number.
    if [*gate.shape.sites.items()] != [*built.shape.sites.items()] or gate.shape.width != built.shape.width:
        raise IncompatibleBlock(
            "the larger bank adapts other sites, or the same in another order, or is of another base; a gate grows at the "
            "sites it knows"
        )
    places = _places(gate.shape, built.shape)
    known, state = gate.state_dict(), copy.deepcopy(built.state_dict())
    if state.keys() != known.keys():
        raise _unlike(sorted(state.keys() ^ known.keys())[0])
    examples = gate.example_rows if isinstance(gate, DetectorGate) else ()
    for key, value in known.items():
        by_row = 1 if key in gate.choice_rows or key in examples else 0
        if state[key].shape[by_row:] != value.shape[by_row:]:
            raise _unlike(key)
        if key in gate.choice_rows:
            room = value.new_zeros(len(state[key]), *value.shape[1:])
            room[places.to(value.device)] = value
            state[key] = room
        else:
            state[key] = value
    for key in examples:
        built.register_buffer(key, torch.zeros_like(state[key]))
    built.load_state_dict(state)
    return built.train(gate.training)


def _unlike(key: str) -> IncompatibleBlock:
    return IncompatibleBlock(f"the gates differ in {key!r}; build the new one with the settings of the old one")


def _places(old: BankShape, new: BankShape) -> torch.Tensor:
    missing = [name for name in old.experts if name not in new.experts]
    if missing:
        raise IncompatibleBlock(
            f"the larger bank lacks {missing[0]!r}, which the gate knows; a gate grows, it does not shrink"
        )
    return torch.tensor([0, *(1 + new.experts.index(name) for name in old.experts)])
