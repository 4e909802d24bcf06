"""Keep libraries from talking over progress bars: what they say here is either known or meant for other settings."""

import logging
import warnings


def quiet() -> None:
    """For a command line or a worker process; a library or a notebook keeps its own settings."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _KNOWN:
        warnings.filterwarnings("ignore", message=message)


_KNOWN = (
    r"Found \d+ module\(s\) in eval mode",  # the frozen base, on purpose
    "You passed in a `val_dataloader` but have no `validation_step`",  # a gate validates in the evaluate stage
    r"`isinstance\(treespec, LeafSpec\)`",
    "`is_gradient_checkpointing`",
)
