"""pmemx run: compose the config with Hydra, check it and launch it; a sweep says which job works where."""

import os
import re
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pmemx.choices import axes, settings
from pmemx.core.errors import ConfigError, PmemxError, StorageError
from pmemx.exit_codes import DONE, FINDING

if TYPE_CHECKING:
    from hydra.errors import HydraException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

DESCRIPTION = "Run an experiment: compose its config, check it against the code, run its plan, write a report."
USAGE = "pmemx run [axis=choice ...] [key=value ...] [-m] [--cfg job]"
EPILOG = """what to say:
  experiments=quickstart     an experiment, by its file in experiments/ (pmemx list experiments)
  gate=linear                a choice of an axis (pmemx list shows the axes, pmemx list gate the choices)
  trainer.steps=50           a setting, by its dotted path (--cfg job shows all)
  scale=smoke                sizes that take seconds; what you say yourself wins over a scale
  seed=1                     another seed: other data, other initial weights, a bank of its own
  plan=[distill,evaluate]    the stages to run, in this order (pmemx list stage)
  +metric@metric.mine=mine   one more metric; a new key has a plus in front
  ~logger.wandb              without a part of the config

options:
  -m, --multirun             a sweep: every combination of values with commas is a job
                             with its own folder, such as seed=0,1 or gate=linear,tracking
  --cfg job                  print the composed config and run nothing
  --cfg job --package gate   only a part of it
  --hydra-help               the other options of Hydra
  -h, --help                 this page

what a run writes:
  outputs/<experiment>/<time>/       its record, figures and report; a sweep adds a folder a job
  outputs/bank                       the experts of seed 0 at full scale, where pmemx bank looks
  outputs/bank_seed1, outputs/smoke  those of other seeds and scales; bank_folder=... names another place

Quote for the shell what it would read itself: 'plan=[distill]'. Quote for Hydra what is no plain word:
"data.domains='my folder'". The default run (no experiments=...) distils, trains a gate and evaluates.
"""

Complain = Callable[[PmemxError], None]
"""Tells the user of an error."""


def run(arguments: list[str], root: Path, complain: Complain) -> int:
    """The exit code of what `pmemx run <arguments>` does. root: the folder that holds conf/ and experiments/.

    Raises ConfigError for what Hydra cannot compose, StorageError where it cannot make the folder of a run.
    """
    import hydra
    from omegaconf import DictConfig

    known = settings(root)
    finished: list[str] = []
    working = False

    def job(config: DictConfig) -> None:
        nonlocal working
        working = True
        where = _job_of_a_sweep(arguments)
        if where:
            print(where, flush=True)
        try:
            _launch(config, known)
        except PmemxError as error:
            complain(error)
            # SystemExit, because Hydra would wrap anything else in words of its own.
            raise SystemExit(FINDING) from error
        finished.append(where)
        working = False

    sys.argv = ["pmemx run", *arguments]
    main = hydra.main(version_base="1.3", config_path=str(root / "conf"), config_name="run")(job)
    with _composing(arguments, root, lambda: working):
        main()
    if len(finished) > 1:
        print("\n".join((f"{len(finished)} jobs are done:", *finished)))
    return DONE


def _launch(config: "DictConfig", known: Collection[str]) -> None:
    from hydra.core.hydra_config import HydraConfig

    from pmemx.preflight import check

    chosen = HydraConfig.get().runtime.choices["experiments"]
    if config.experiment != chosen:
        raise ConfigError(
            f"experiment={config.experiment} chooses no experiment: the key holds the name of the one that runs, {chosen!r}; "
            f"did you mean experiments={config.experiment}?"
        )
    check(config, known)
    from pmemx.report import write_report
    from pmemx.stage.launch import launch

    launch(config, write_report)


def _job_of_a_sweep(arguments: list[str]) -> str:
    """ "job 1 (seed=1): outputs/...", from what this job has and the command line has not; empty outside of a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    if hydra.mode is not RunMode.MULTIRUN:
        return ""
    # Hydra writes false as False and a deletion in another way than the command line did; no deletion can be swept.
    told = {argument.casefold() for argument in arguments}
    own = ", ".join(said for said in hydra.overrides.task if said.casefold() not in told and not said.startswith("~"))
    return f"job {hydra.job.num} ({own}): {os.path.relpath(hydra.runtime.output_dir)}"


@contextmanager
def _composing(arguments: list[str], root: Path, working: Callable[[], bool]) -> Iterator[None]:
    """Turns what Hydra raises about a command line into one sentence; what a working job raises goes through."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    # With it Hydra raises what it would print in its own words.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        if working():
            raise
        raise ConfigError(_sentence(error, root)) from error
    except OSError as error:
        if working():
            raise
        raise StorageError(
            f"the folder of the run cannot be made ({error}); let this user write there, or say another: "
            "hydra.run.dir=<folder>, for a sweep hydra.sweep.dir=<folder>"
        ) from error


def _sentence(error: "HydraException | OmegaConfBaseException", root: Path) -> str:
    """What does not compose, with the nearest that would."""
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    from pmemx.stage.build import did_you_mean

    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        axis, _, name = error.missing_cfg_file.rpartition("/")
        return f"{axis}={name}: there is no such choice{did_you_mean(name, error.options or [])}"
    if isinstance(error, OverrideParseException):
        key, _, value = error.override.partition("=")
        return (
            f"{error.override!r} cannot be read as an override; quote a value that is no plain word twice, for the shell "
            f"and for Hydra: \"{key}='{value}'\""
        )
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, OmegaConfBaseException) and isinstance(cause.parent_node, DictConfig) and cause.full_key:
        key, at_root = str(cause.key), "." not in cause.full_key
        there = {str(name) for name in cause.parent_node} - {"hydra"}
        nearest = did_you_mean(key, there | set(axes(root)) if at_root else there)
        return f"{cause.full_key}: there is no such setting{nearest}"
    return re.sub(r"\s*\n\s*", "; ", str(error).strip())
