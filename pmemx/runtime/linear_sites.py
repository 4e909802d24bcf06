"""The linear layers of a model that experts may be born at."""

from torch import nn

from pmemx.core.structure import LinearSites
from pmemx.runtime.fitting import layer_widths


def linear_sites(model: nn.Module) -> LinearSites:
    """Every linear layer inside a numbered layer, which leaves the head out."""
    found = {name: widths for name, module in model.named_modules() if (widths := layer_widths(module)) is not None}
    inside = LinearSites(found).called("all-linear")
    return LinearSites({name: found[name] for name in inside})
