"""Build the object that a config node describes: `_target_` names a class, the other keys are its arguments."""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from pmemx.core.errors import ConfigError

TRUSTED = ("pmemx.", "lightning.pytorch.loggers.")
"""A config may name nothing else: it is data, and data must not call what it likes."""


def build(node: object) -> Any:
    """The object of a resolved node, built from the inside out; lists become tuples.

    `_partial_: true` gives a function that waits for the missing arguments. Unlike Hydra's own instantiation it
    passes deliberate errors on unwrapped. Raises ConfigError for a target that is not trusted or does not exist.
    """
    if isinstance(node, list | tuple):
        return tuple(build(item) for item in node)
    if not isinstance(node, Mapping):
        return node
    arguments = {str(key): build(value) for key, value in node.items() if key not in ("_target_", "_partial_")}
    if "_target_" not in node:
        return arguments
    target = locate(node["_target_"])
    return partial(target, **arguments) if node.get("_partial_") else target(**arguments)


def locate(target: str) -> Callable[..., Any]:
    """The class or function of a dotted name. Raises ConfigError if it is not trusted, not there or not callable."""
    if not isinstance(target, str) or not target.startswith(TRUSTED):
        raise ConfigError(f"{target!r} is outside {' and '.join(TRUSTED)}; put what a config may call into pmemx")
    module_name, _, name = target.rpartition(".")
    module = _module(module_name)
    found = getattr(module, name, None)
    if found is None:
        public = [other for other, value in vars(module).items() if inspect.isclass(value) or inspect.isfunction(value)]
        raise ConfigError(f"{module_name} holds no {name!r}{did_you_mean(name, public)}")
    # A trusted module that imports another must not lend it: pmemx.x.os.system is os.system.
    if not callable(found) or not f"{found.__module__}.".startswith(TRUSTED):
        raise ConfigError(f"{target} is not a class or function of {' or '.join(TRUSTED)}")
    return found


def did_you_mean(name: str, candidates: Collection[str]) -> str:
    """The end of an error message: the nearest candidate, else all of them."""
    nearest = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    if nearest:
        return f"; did you mean {nearest[0]!r}?"
    return f"; there is {', '.join(sorted(candidates))}" if candidates else ""


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(f"{name} needs the package {error.name!r}; install it") from error
    parent_name, _, last = name.rpartition(".")
    parent = _module(parent_name)
    siblings = [module.name for module in pkgutil.iter_modules(getattr(parent, "__path__", []))]
    raise ConfigError(f"there is no module {name}{did_you_mean(last, siblings)}")
