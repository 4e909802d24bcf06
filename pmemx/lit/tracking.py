"""Send what a run writes to Lightning loggers: numbers, config, tables, images and folders."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger

from pmemx.core.record import CurvePoint

Cell = str | float | int | bool | None


class Tracker:
    """Several loggers as one; each shows what it can. Runs without any logger cost nothing."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self.loggers = tuple(loggers)

    def config(self, settings: Mapping[str, object]) -> None:
        """The resolved config of the run."""
        for logger in self.loggers:
            logger.log_hyperparams(dict(settings))

    def points(self, points: Sequence[CurvePoint]) -> None:
        """Points of metrics.jsonl, as curves named stage/domain/name."""
        by_step: dict[tuple[str, str | None, int], dict[str, float]] = defaultdict(dict)
        for point in points:
            name = "/".join(part for part in (point.stage, point.domain, point.name) if part)
            by_step[point.stage, point.domain, point.step][name] = point.value
        for logger in self.loggers:
            for (_, _, step), values in by_step.items():
                logger.log_metrics(values, step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """One table; TensorBoard shows it as text."""
        for logger in self.loggers:
            match logger:
                case WandbLogger():
                    logger.log_table(name, columns=list(columns), data=[list(row) for row in rows])
                case TensorBoardLogger():
                    lines = [columns, ["---"] * len(columns), *rows]
                    text = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
                    logger.experiment.add_text(name, text)

    def image(self, name: str, path: Path) -> None:
        """One PNG file."""
        for logger in self.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(name, images=[str(path)])

    def artifact(self, name: str, kind: str, path: Path) -> None:
        """One file or folder, copied to where the logger keeps such things."""
        for logger in self.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.log_artifact(str(path), name=name, type=kind)

    def close(self, *, success: bool) -> None:
        """Flush; after a failure the loggers say so."""
        for logger in self.loggers:
            logger.finalize("success" if success else "failed")
            if isinstance(logger, WandbLogger):
                logger.experiment.finish(0 if success else 1)


def keep_under(folder: Path) -> None:
    """Keep what Weights & Biases stages and caches inside the run folder rather than in the home folder."""
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        os.environ[name] = str(folder)
