"""Randomness as a function of seed and step: dropout after a resume is the dropout of the uninterrupted run."""

import hashlib
from typing import Any

import lightning as L
import torch


class Reseed(L.Callback):
    """Seeds torch before every batch from (seed, number of the batch)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The number of the batch is that of the stream: it counts from the start of training, over all processes."""
        number = trainer.global_step * trainer.accumulate_grad_batches + batch_idx % trainer.accumulate_grad_batches
        number = number * trainer.world_size + trainer.global_rank
        state = hashlib.sha256(f"{self.seed}:{number}".encode()).digest()
        torch.manual_seed(int.from_bytes(state[:8], "big") >> 1)
