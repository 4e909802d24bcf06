"""One training run through Lightning: seeds, precision, early stopping, checkpoints, and a bit-exact resume."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger

from pmemx.core.errors import CorruptBlock
from pmemx.lit.checkpoint import SafeCheckpointIO
from pmemx.lit.reseed import Reseed
from pmemx.lit.settings import TrainerSettings

OnStep = Callable[[int, dict[str, float]], None]
"""Called after every optimiser step, by the first process alone, with the number of steps done and the logged values."""


class Report(Callback):
    """Hands logged values on, and stops when the running mean of the loss is low enough in every process."""

    def __init__(self, on_step: OnStep, stop_below: float) -> None:
        self.on_step, self.stop_below = on_step, stop_below
        self.recent: list[float] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Reports at the end of every accumulated step."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if trainer.is_global_zero:
            self.on_step(trainer.global_step, values)
        self.recent = [*self.recent[-9:], values.get("train/loss", float("inf"))]
        low = len(self.recent) == 10 and sum(self.recent) / 10 < self.stop_below
        if self.stop_below and trainer.strategy.reduce_boolean_decision(low):
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """The running mean survives a resume."""
        return {"recent": self.recent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See state_dict."""
        self.recent = state_dict["recent"]


def fit(
    module: L.LightningModule,
    data: L.LightningDataModule,
    settings: TrainerSettings,
    *,
    seed: int,
    folder: Path,
    on_step: OnStep,
) -> int:
    """Train in place; returns the number of optimiser steps done.

    Checkpoints go to `folder`. With settings.resume the run continues from the newest one that is whole, and ends with
    bitwise the weights of a run that was never stopped.
    """
    callbacks: list[Callback] = [Reseed(seed), Report(on_step, settings.stop_below)]
    if settings.patience:
        callbacks.append(EarlyStopping("val/loss", patience=settings.patience, mode="min"))
    if settings.checkpoint_every:
        callbacks.append(
            ModelCheckpoint(
                folder,
                filename="{step:08d}",
                every_n_train_steps=settings.checkpoint_every,
                monitor="step",
                mode="max",
                save_top_k=2,
                auto_insert_metric_name=False,
            )
        )
    trainer = L.Trainer(
        max_steps=settings.steps,
        max_epochs=-1,
        accelerator=settings.accelerator,
        devices=settings.devices,
        strategy=settings.strategy,
        precision=settings.precision,  # type: ignore[arg-type]
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.clip or None,
        val_check_interval=settings.validate_every * settings.accumulate or None,
        check_val_every_n_epoch=None,
        limit_val_batches=None if settings.validate_every else 0,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        plugins=[SafeCheckpointIO()],
        logger=DummyLogger(),
        log_every_n_steps=1,
        enable_checkpointing=bool(settings.checkpoint_every),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, datamodule=data, ckpt_path=newest(folder) if settings.resume else None)
    return trainer.global_step


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; broken ones are passed over, and None means a start from the beginning."""
    found = sorted((p for p in folder.glob("*.ckpt") if re.fullmatch(r"\d+\.ckpt", p.name)), reverse=True)
    for path in found:
        try:
            SafeCheckpointIO().load_checkpoint(path)
        except CorruptBlock:
            continue
        return path
    return None
