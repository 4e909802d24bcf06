"""Settings of a training run, for experts and gates alike."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pmemx.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """How long, how fast, how precisely; Lightning does the rest.

    steps: optimiser steps at most. schedule: after a linear warm-up the rate stays, or falls to zero linearly or as a
    cosine. patience: stop after so many validations without a better loss (0: never); a validation happens every
    `validate_every` steps (0: never). stop_below: stop when the training loss, averaged over 10 steps, falls below it (0: never).
    checkpoint_every: steps between checkpoints (0: none); resume: continue from the last whole one.
    accelerator, devices, strategy and precision are Lightning's.
    """

    steps: int = 150
    batch_size: int = 32
    lr: float = 3e-3
    weight_decay: float = 0.0
    warmup: int = 10
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    accumulate: int = 1
    clip: float = 1.0
    precision: str = "32-true"
    accelerator: str = "cpu"
    devices: int = 1
    strategy: str = "auto"
    validate_every: int = 0
    patience: int = 0
    stop_below: float = 0.0
    checkpoint_every: int = 0
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "devices"):
            if getattr(self, name) < 1:
                raise ConfigError(f"trainer.{name} = {getattr(self, name)} must be at least 1")
        if self.lr <= 0:
            raise ConfigError(f"trainer.lr = {self.lr} must be positive")
        if self.patience and not self.validate_every:
            raise ConfigError("trainer.patience needs validations; set trainer.validate_every to a number of steps")
        if self.resume and not self.checkpoint_every:
            raise ConfigError("trainer.resume needs checkpoints; set trainer.checkpoint_every to a number of steps")

    @property
    def recipe(self) -> dict[str, object]:
        """What decides the result; leaves out what only decides how a run survives."""
        kept = {name: value for name, value in vars(self).items() if name not in ("checkpoint_every", "resume")}
        return kept

    def optimizer(self, module: nn.Module) -> tuple[Optimizer, LambdaLR]:
        """AdamW over the trainable parameters, and its learning-rate schedule by step."""
        optimizer = AdamW(
            [parameter for parameter in module.parameters() if parameter.requires_grad],
            lr=self.lr,
            betas=(0.9, 0.98),
            weight_decay=self.weight_decay,
        )
        # A plain function: a checkpoint would try to store the state of a bound method.
        return optimizer, LambdaLR(optimizer, lambda step: self.rate(step))

    def rate(self, step: int) -> float:
        """Learning rate at a step, as a share of the highest."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        match self.schedule:
            case "constant":
                return 1.0
            case "linear":
                return 1.0 - done
            case "cosine":
                return 0.5 * (1 + math.cos(math.pi * done))
