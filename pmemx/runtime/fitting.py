"""Whether a bank fits a model, and a gate fits a bank: asked once, before anything is attached."""

from torch import nn

from pmemx.core.bank import ExpertBank
from pmemx.core.errors import IncompatibleBlock
from pmemx.core.gate import Gate, HeadedGate, SiteGate


def check_sites(model: nn.Module, bank: ExpertBank) -> None:
    """Raises IncompatibleBlock when a site of the bank is missing in the model, no linear layer, or of another width."""
    modules = dict(model.named_modules())
    missing = [site for site in bank.site_names if site not in modules]
    if missing:
        raise IncompatibleBlock(
            f"the model has no layer {missing[0]!r} ({len(missing)} missing); it is another architecture"
        )
    for name, site in bank.items():
        widths = layer_widths(modules[name])
        if widths is None:
            raise IncompatibleBlock(f"{name!r} is a {type(modules[name]).__name__}, not a linear layer; leave it out")
        if widths != (site.width_in, site.width_out):
            raise IncompatibleBlock(
                f"{name!r} maps {widths[0]} to {widths[1]} in the model, {site.width_in} to {site.width_out} in the bank; "
                f"load the base that the experts were trained on"
            )


def check_gate(gate: Gate, bank: ExpertBank) -> None:
    """Raises IncompatibleBlock when the gate was built for an expert, or for sites, that the bank does not hold."""
    strangers = [name for name in gate.shape.experts if name not in bank.names]
    if strangers:
        raise IncompatibleBlock(
            f"the gate was built for expert {strangers[0]!r}, but the bank holds {', '.join(bank.names)}; build it from "
            f"bank.shape and train it again"
        )
    if isinstance(gate, SiteGate):
        check_sites_of(gate, bank)
    if isinstance(gate, HeadedGate):
        _check_heads(gate, bank)


def _check_heads(gate: HeadedGate, bank: ExpertBank) -> None:
    for name, site in bank.items():
        if site.width_in % gate.heads or site.width_out % gate.heads:
            raise IncompatibleBlock(
                f"{name!r} maps {site.width_in} to {site.width_out}, which {gate.heads} heads do not divide into equal pieces; "
                f"choose a number of heads that divides both"
            )


def check_sites_of(gate: Gate, bank: ExpertBank) -> None:
    """Raises IncompatibleBlock when the gate does not know a site of the bank, or knows it with another width."""
    own = {name: site.width_in for name, site in bank.items()}
    wrong = [site for site in own if gate.shape.sites.get(site) != own[site]]
    if wrong:
        raise IncompatibleBlock(
            f"the gate knows {wrong[0]!r} with width {gate.shape.sites.get(wrong[0])}, the bank with {own[wrong[0]]}; "
            f"build it from bank.shape and train it again"
        )


def layer_widths(module: nn.Module) -> tuple[int, int] | None:
    """Input and output width of a linear layer: of nn.Linear and the quantised ones after it, of GPT-2's Conv1D, else None."""
    for width_in, width_out in (("in_features", "out_features"), ("nx", "nf")):
        if isinstance(getattr(module, width_in, None), int) and isinstance(getattr(module, width_out, None), int):
            return getattr(module, width_in), getattr(module, width_out)
    return None
