"""Which sites of a gate share weights: none, or those of a layer that read the same width."""

from pmemx.core.bank import BankShape
from pmemx.core.gate import Level, layer_of


def shared(shape: BankShape, level: Level) -> tuple[dict[str, int], list[int]]:
    """The number of the weights that a site uses, by site, and the input width of each.

    At level "layer", where the first site of a layer decides, a layer has one set of weights for every width that its
    sites read; at the other levels a site has its own.
    """
    keys = {site: (layer_of(site) if level == "layer" else site, width) for site, width in shape.sites.items()}
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys.values()))}
    return {site: numbers[key] for site, key in keys.items()}, [width for _, width in numbers]
