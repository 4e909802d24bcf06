"""pmemx: distil, bank, compose and measure parametric memory in LoRA experts of a frozen language model."""

from typing import TYPE_CHECKING, Any

from pmemx.tested_versions import warn_if_untested

if TYPE_CHECKING:
    from pmemx.run.load import load_run

__all__ = ["load_run"]

warn_if_untested()


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: `pmemx --help` and the verbs of a bank need no torch.
    if name == "load_run":
        from pmemx.run.load import load_run

        return load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
