"""Open a finished run: its base model, its experts, a gate as it was trained, and how the gate's scores decide."""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pmemx.core.bank import ExpertBank
from pmemx.core.base_model import BaseModel, LoadedBase
from pmemx.core.domain import Example
from pmemx.core.encoding import encode
from pmemx.core.errors import ConfigError, DataError, IncompatibleBlock, UnknownBlock
from pmemx.core.gate import Gate
from pmemx.core.mix import Mixing
from pmemx.core.provenance import Provenance
from pmemx.core.record import RECORD_FILE, RunRecord
from pmemx.core.routing import Select
from pmemx.core.store import Store
from pmemx.preflight import check_settings
from pmemx.runtime.answer import answers
from pmemx.runtime.attach import Routed, attached
from pmemx.stage.bank import GateFactory, course_digests, load_gate
from pmemx.stage.build import build, did_you_mean
from pmemx.stage.composition import Composition, all_compositions

CONFIG, HYDRA = ".hydra/config.yaml", ".hydra/hydra.yaml"
_OF_HYDRA = re.compile(r"\$\{hydra:([\w.]+)\}")
_EVALUATE = "stage.evaluate"
_SETTINGS: dict[str, Any] = {
    "base_model": BaseModel,
    "store": Store,
    "gates": dict[str, GateFactory | None],
    "compositions": dict[str, Composition],
    "select": Select,
    "mixing": Mixing,
}
"""What is read of the stage that measured the run, with its types."""
_PATHS = ("path", "cold")
"""Settings of a base model and of a store that may name a folder."""


@dataclass(frozen=True)
class Reply:
    """What was said to a prompt, and what produced it: base, gate, and each expert's version with its share."""

    text: str
    provenance: Provenance

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, eq=False, repr=False)
class LoadedRun:
    """What a finished run made.

    Attributes:
        folder: the folder of the run.
        model: the base, a frozen transformers model in eval mode; nobody else holds this object.
        tokenizer: the base's.
        base: fingerprint of the base.
        store: where the experts came from.
        bank: the experts, in the versions that the run distilled.
        gate: as it was trained, in eval mode.
        select: how the gate's scores choose.
        mixing: what the weights mix, see core.mix.Mixing.
    """

    folder: Path
    model: Any
    tokenizer: Any
    base: str
    store: Store
    bank: ExpertBank
    gate: Gate
    select: Select
    mixing: Mixing

    def __repr__(self) -> str:
        experts = ", ".join(self.bank.names)
        return f"LoadedRun({str(self.folder)!r}: {type(self.gate).__name__} over {experts})"

    def attached(self) -> AbstractContextManager[Routed]:
        """The experts on the model, as the run measured them, for the length of a block; see `pmemx.runtime.attach.attached`."""
        return attached(self.model, self.bank, gate=self.gate, select=self.select, base=self.base, mixing=self.mixing)

    def answer(self, prompt: str, *, max_new_tokens: int = 32) -> Reply:
        """What the model says to a prompt by greedy search, with the experts that the gate chooses.

        Attaches the experts for the length of the call. Raises PmemxError where experts are attached already, and for a
        composition that transforms its experts: no version could be named that produced the answer.
        """
        row = encode(self.tokenizer, Example(id="", prompt=prompt, response=""), with_document=False)
        with self.attached() as routed:
            (found,) = answers(routed, self.tokenizer, [row], max_new_tokens=max_new_tokens)
        return Reply(self.tokenizer.decode(found.ids, skip_special_tokens=True).strip(), found.provenance)


def load_run(folder: str | Path, *, gate: str = "gate") -> LoadedRun:
    """Open a finished run: to ask it, to serve it, or to take it apart.

    Args:
        folder: the folder of a run (outputs/<experiment>/<time>), or a folder of runs (outputs/<experiment>), in which the
            newest finished run at scale=full is taken; `LoadedRun.folder` says which.
        gate: the gate or composition that decides, by its name in the run's table of results.

    Relative paths in the run's settings hold from where it was started, or from here where nothing lies there.
    Raises DataError where there is no such run, or it made no experts; ConfigError for settings that this version of pmemx
    does not know, and for a gate that the run does not have or has not trained; UnknownBlock for an expert that the bank
    does not hold any more; IncompatibleBlock for another base, and for a gate of other experts or of another version.
    """
    folder = _run_in(Path(folder))
    record = _record(folder)
    if not (folder / "blocks.json").exists():
        raise DataError(f"{folder} made no experts ({_progress(record)}); run it to its end, or name another run")
    config = _config(folder)
    check_settings(config, {f"{_EVALUATE}.{name}": expected for name, expected in _SETTINGS.items()})
    made = {name: build(_setting(config, name)) for name in ("store", "select", "mixing")}
    composition = _composition(config, gate, made["select"], made["mixing"], folder)
    base = _base(build(_setting(config, "base_model")), record, folder)
    digests = {name: versions[-1] for name, versions in course_digests(folder, "experts").items()}
    _held(made["store"], digests, folder)
    bank = composition.bank(made["store"], tuple(digests.values()), base)
    shape = bank.shape(base.model.config.hidden_size)
    trained = load_gate(composition.gate, shape, folder / "gates", gate, versions=tuple(digests.values()))
    return LoadedRun(
        folder=folder,
        model=base.model,
        tokenizer=base.tokenizer,
        base=base.fingerprint,
        store=made["store"],
        bank=bank,
        gate=trained,
        select=composition.select,
        mixing=composition.mixing,
    )


def _run_in(folder: Path) -> Path:
    """The folder itself where it is that of a run, else the newest finished run at full scale in it, or in its sweeps."""
    if _is_run(folder):
        return folder
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; name that of a run, such as outputs/quickstart")
    found = sorted(path for pattern in ("*", "*/*") for path in folder.glob(pattern) if _is_run(path))
    if not found:
        raise DataError(f"{folder} is no run and holds none ({CONFIG} is missing); name that of a run")
    finished = [(created, run) for run in found if (created := _finished(run)) and _scale(run) == "full"]
    if not finished:
        raise DataError(
            f"none of the {len(found)} runs in {folder} is finished at scale=full; wait for one, or name the folder of the "
            f"run that you mean, such as {found[-1]}"
        )
    return max(finished)[1]


def _is_run(folder: Path) -> bool:
    return all((folder / file).exists() for file in (CONFIG, HYDRA))


def _finished(folder: Path) -> str:
    """When a finished run began; empty for an unfinished one, and for one whose record this version cannot read."""
    try:
        record = RunRecord.read(folder)
    except DataError:
        return ""
    return "" if _missing(record) else record.created


def _record(folder: Path) -> RunRecord:
    if not (folder / RECORD_FILE).exists():
        raise DataError(f"{folder} has finished no stage yet ({RECORD_FILE} is missing); wait, or run it again")
    return RunRecord.read(folder)


def _missing(record: RunRecord) -> tuple[str, ...]:
    return tuple(stage for stage in record.plan if stage not in record.seconds)


def _progress(record: RunRecord) -> str:
    return f"its plan is {', '.join(record.plan)}; not done: {', '.join(_missing(record)) or 'nothing'}"


def _scale(folder: Path) -> str:
    return str(OmegaConf.select(OmegaConf.load(folder / HYDRA), "hydra.runtime.choices.scale"))


def _config(folder: Path) -> DictConfig:
    """The composed config of a run, where "hydra" holds what Hydra said of the run."""
    text = (folder / CONFIG).read_text(encoding="utf-8")
    # "${hydra:x}" is answered while Hydra runs; afterwards what it would answer stands in the file beside.
    config = OmegaConf.merge(OmegaConf.create(_OF_HYDRA.sub(r"${hydra.\1}", text)), OmegaConf.load(folder / HYDRA))
    assert isinstance(config, DictConfig)
    return config


def _setting(config: DictConfig, name: str) -> Any:
    """A setting of the stage that measured the run, in plain types, with relative paths from where the run was started."""
    try:
        node = OmegaConf.select(config, f"{_EVALUATE}.{name}")
        value = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    except OmegaConfBaseException as error:  # such as an environment variable that is not set here
        raise ConfigError(f"{_EVALUATE}.{name} of the run cannot be read here: {str(error).splitlines()[0]}") from error
    if name in ("base_model", "store") and isinstance(value, dict):
        start = Path(OmegaConf.select(config, "hydra.runtime.cwd"))
        paths = {key: str(start / value[key]) for key in _PATHS if value.get(key)}
        value |= {key: path for key, path in paths.items() if Path(path).exists()}
    return value


def _composition(config: DictConfig, gate: str, select: Select, mixing: Mixing, folder: Path) -> Composition:
    gates, compositions = build(_setting(config, "gates")), build(_setting(config, "compositions"))
    known = all_compositions(gates, compositions, select=select, mixing=mixing)
    if gate not in known:
        raise ConfigError(f"run {folder} has no gate {gate!r}{did_you_mean(gate, known)}")
    return known[gate]


def _base(model: BaseModel, record: RunRecord, folder: Path) -> LoadedBase:
    base = model.load()
    if record.base is not None and record.base.fingerprint != base.fingerprint:
        raise IncompatibleBlock(
            f"run {folder} was made on base {record.base.name} ({record.base.fingerprint[:12]}), but {base.name} is "
            f"{base.fingerprint[:12]} now; bring its weights back, or run it again"
        )
    return base


def _held(store: Store, digests: Mapping[str, str], folder: Path) -> None:
    """Raises UnknownBlock, by name, for a version that the run made and its bank does not hold any more."""
    for name, digest in digests.items():
        try:
            store.find(digest)
        except UnknownBlock as error:
            raise UnknownBlock(
                f"run {folder} made expert {name!r} as version {digest[:12]}, but its bank does not hold that: {error}; "
                f"bring the bank back to where the run left it, or run it again"
            ) from error
