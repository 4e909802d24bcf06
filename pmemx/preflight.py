"""Check a composed config against the signatures that it will call, before any work, and report every misfit at once."""

import inspect
import re
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pmemx.choices import REFERENCED
from pmemx.core.atomic import check_writable
from pmemx.core.errors import ConfigError
from pmemx.core.stage import Stage
from pmemx.core.store import Store
from pmemx.stage.build import build, did_you_mean, locate

REFERENCE = re.compile(r"\$\{([A-Za-z_][\w.]*)\}")


_OF_A_RUN: dict[str, Any] = {"seed": int, "run_folder": str, "notice": str, "logger": dict | None, "summary": dict}
"""What a run takes itself, beside its plan and its stages."""
_SEEDS = 2**32  # as many as numpy takes


def check(config: DictConfig, known: Collection[str] = ()) -> None:
    """Walk the stages of the plan and the loggers, and everything that they refer to; then ask for the places of the run.

    known: settings at the root that stand even if nothing refers to them; empty for any. Raises ConfigError with one line
    a misfit: an unknown or missing argument, a value of the wrong type, a target that does not exist, a required setting
    without a value, a stage that the plan names and the config does not hold, a setting at the root that nothing reads.
    Raises StorageError or AccessDenied where the run may not write its folder or the store of a stage that puts blocks.
    """
    _refuse(_Walk(config, known).run())
    check_writable(Path(str(config.run_folder)))
    for store in _written(config):
        store.check_writable()


def check_settings(config: DictConfig, expected: Mapping[str, Any]) -> None:
    """The same for some settings alone, by dotted path, with the type that each must have."""
    walk = _Walk(config, ())
    _refuse(misfit for path, kind in expected.items() for misfit in walk.node(walk.at(path), path, kind))


def _refuse(found: Iterable[str]) -> None:
    misfits = list(dict.fromkeys(found))
    if misfits:
        count = "a misfit" if len(misfits) == 1 else f"{len(misfits)} misfits"
        raise ConfigError("\n  ".join((f"{count} between the config and the code:", *misfits)))


def _written(config: DictConfig) -> Iterator[Store]:
    """The stores into which the plan puts blocks, each once."""
    nodes: list[object] = []
    for name in config.plan:
        node: Any = OmegaConf.to_container(config.stage[name], resolve=True)
        stage: Any = locate(node["_target_"])
        if stage.puts_blocks:
            nodes += [node[key] for key, kind in _annotations(stage).items() if kind is Store and key in node]
    yield from (build(node) for number, node in enumerate(nodes) if node not in nodes[:number])


class _Walk:
    """One pass over a config; follows "${gate}" to where it points, so that a misfit is named where it was written."""

    def __init__(self, config: DictConfig, known: Collection[str]) -> None:
        self.config = config
        self.known = known
        self.raw: Any = OmegaConf.to_container(config, resolve=False)

    def run(self) -> Iterator[str]:
        stages, plan = self.raw.get("stage") or {}, self.raw.get("plan")
        if not isinstance(plan, list) or not plan:
            yield f"plan: it is empty{did_you_mean('', stages)}; set it, for example plan=[{next(iter(stages), 'stage')}]"
            plan = []
        for name in plan:
            if name in stages:
                yield from self.node(stages[name], f"stage.{name}", Stage)
            else:
                yield f"plan: no stage {name!r}{did_you_mean(str(name), stages)}"
        for name, node in (self.raw.get("logger") or {}).items():
            yield from self.node(node, f"logger.{name}")
        for key, expected in _OF_A_RUN.items():
            yield from self.node(self.raw.get(key, "???"), key, expected, "a run")
        if isinstance(seed := self.raw.get("seed"), int) and not 0 <= seed < _SEEDS:
            yield f"seed: it is {seed}, and a seed is 0 or more and below {_SEEDS}"
        if self.known:
            yield from self.unread()

    def unread(self) -> Iterator[str]:
        """Settings at the root that neither a run knows nor anything in the config refers to."""
        read = {*self.known, *_OF_A_RUN, "plan", "stage", *REFERENCED.findall(str(self.raw))}
        for key in self.raw:
            if key not in read:
                yield f"{key}: nothing reads it{did_you_mean(str(key), read - {key})}"

    def node(self, value: Any, path: str, expected: Any = Any, owner: str = "") -> Iterator[str]:
        """Misfits of one value that `owner` takes as `expected`, and of all below it."""
        if isinstance(value, str) and (reference := REFERENCE.fullmatch(value)):
            yield from self.node(self.at(reference[1]), reference[1], expected, owner)
            return
        if isinstance(value, str) and "${" in value:
            try:
                value = OmegaConf.select(self.config, path)
            except OmegaConfBaseException as error:
                yield f"{path}: {str(error).splitlines()[0]}"
                return
            if isinstance(value, DictConfig | ListConfig):
                value = OmegaConf.to_container(value, resolve=False)
        if value == "???":
            yield f"{path}: a value is required; set {path}=..."
        elif isinstance(value, dict) and "_target_" in value:
            yield from self.call(value, path, expected, owner)
        elif not fits(value, expected):
            yield f"{path}: {owner} takes {describe(expected)}, not {shown(value)}{_nearest(value, expected)}"
        else:
            yield from self.children(value, path, expected, owner)

    def at(self, path: str) -> Any:
        """The unresolved value at a dotted path; a path that is not there is a required value."""
        value: Any = self.raw
        for key in path.split("."):
            if isinstance(value, str) and (reference := REFERENCE.fullmatch(value)):
                value = self.at(reference[1])
            value = value.get(key, "???") if isinstance(value, dict) else "???"
        return value

    def children(self, value: Any, path: str, expected: Any, owner: str) -> Iterator[str]:
        """Misfits inside a list or a mapping."""
        item = _item_type(expected)
        if isinstance(value, dict):
            for key, child in value.items():
                yield from self.node(child, f"{path}.{key}", item, owner)
        elif isinstance(value, list):
            for index, child in enumerate(value):
                yield from self.node(child, f"{path}[{index}]", item, owner)

    def call(self, node: dict[str, Any], path: str, expected: Any, owner: str) -> Iterator[str]:
        """Misfits between a node with a `_target_` and the signature of that target."""
        try:
            target = locate(node["_target_"])
        except ConfigError as error:
            yield f"{path}._target_: {error}"
            return
        name, waits = target.__name__, bool(node.get("_partial_"))
        if inspect.isclass(target) and not waits and not _may_be(target, expected):
            yield f"{path}: {owner or 'the plan'} takes {describe(expected)}, and {name} is none"
        parameters = inspect.signature(target).parameters
        named = {key: p for key, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        given = {key: value for key, value in node.items() if key not in ("_target_", "_partial_")}
        types_by_name = _annotations(target)
        for key, value in given.items():
            if key in named:
                yield from self.node(value, f"{path}.{key}", types_by_name.get(key, Any), name)
            elif not anything:
                yield f"{path}.{key}: {name} takes no {key!r}{did_you_mean(key, list(named))}"
        for key, parameter in named.items():
            if key not in given and parameter.default is parameter.empty and not waits:
                yield f"{path}.{key}: {name} needs it; set +{path}.{key}=..."


def fits(value: object, expected: Any) -> bool:
    """Whether a YAML value can be what an annotation asks for; true where that cannot be told."""
    if expected is Any:
        return True
    origin = get_origin(expected)
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in get_args(expected))
    if origin is Literal:
        return value in get_args(expected)
    if expected in (None, type(None)):
        return value is None
    if expected is bool:
        return isinstance(value, bool)
    if expected in (int, float):
        return isinstance(value, (int, expected)) and not isinstance(value, bool)
    if expected in (str, Path):
        return isinstance(value, str)
    kind = origin or expected
    if not inspect.isclass(kind) or kind is object:
        return True
    if issubclass(kind, Mapping):
        return isinstance(value, dict)
    if issubclass(kind, Sequence):
        return isinstance(value, list)
    return False  # a class of objects, which only a node with a `_target_` can become


def _may_be(target: type, expected: Any) -> bool:
    origin = get_origin(expected)
    if origin in (Union, types.UnionType):
        return any(_may_be(target, option) for option in get_args(expected))
    kind = origin or expected
    if not inspect.isclass(kind) or getattr(kind, "_is_protocol", False):
        return True
    return kind in (Any, Callable) or issubclass(target, kind)


def _annotations(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # a name that exists for the type checker only
        return {}


def _item_type(expected: Any) -> Any:
    options = get_args(expected) if get_origin(expected) in (Union, types.UnionType) else (expected,)
    for option in options:
        kind, arguments = get_origin(option), [a for a in get_args(option) if a is not ...]
        if inspect.isclass(kind) and issubclass(kind, Mapping | Sequence) and arguments:
            return arguments[-1]
    return Any


def describe(expected: Any) -> str:
    """An annotation in words: "an int", "one of linear, cosine"."""
    origin = get_origin(expected)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(option) for option in get_args(expected))
    if origin is Literal:
        return f"one of {', '.join(map(str, get_args(expected)))}"
    if expected in (None, type(None)):
        return "null"
    name = getattr(origin or expected, "__name__", str(expected))
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def shown(value: object) -> str:
    """A value as an error message shows it."""
    return "null" if value is None else f"{value!r} ({type(value).__name__})"


def _nearest(value: object, expected: Any) -> str:
    if get_origin(expected) is Literal and isinstance(value, str):
        return did_you_mean(value, [str(option) for option in get_args(expected)])
    return ""
