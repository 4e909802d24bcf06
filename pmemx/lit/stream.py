"""Training rows in an order that is a pure function of seed and step, so that a resumed run sees what it would have seen."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pmemx.core.distill import Predictions
from pmemx.core.encoding import Batch, Encoded, collate


@dataclass(frozen=True, eq=False)
class Row:
    """One training row and what the teacher says at its answer tokens."""

    encoded: Encoded
    teacher: Predictions | None = None


class DeviceBatch(ABC):
    """A batch that knows how to change its device."""

    @abstractmethod
    def to(self, device: torch.device) -> "DeviceBatch":
        """The same batch on another device."""


@dataclass(frozen=True, eq=False)
class TrainingBatch(DeviceBatch):
    """Rows of the domain, and rows of general text whose teacher is the base (None without locality)."""

    rows: Batch
    teacher: Predictions | None
    anchors: Batch | None
    anchor_teacher: Predictions | None

    def to(self, device: torch.device) -> "TrainingBatch":
        """The same batch on another device."""
        return TrainingBatch(
            self.rows.to(device),
            None if self.teacher is None else self.teacher.to(device),
            None if self.anchors is None else self.anchors.to(device),
            None if self.anchor_teacher is None else self.anchor_teacher.to(device),
        )


def join(rows: Sequence[Row], pad: int) -> tuple[Batch, Predictions | None]:
    """Collate rows and their teachers; positions run row by row, as Batch.labels does."""
    batch = collate([row.encoded for row in rows], pad)
    teachers = [row.teacher for row in rows if row.teacher is not None]
    if not teachers:
        return batch, None
    hidden = [teacher.hidden for teacher in teachers if teacher.hidden is not None]
    return batch, Predictions(
        torch.cat([teacher.logits for teacher in teachers]), torch.cat(hidden, dim=1) if hidden else None
    )


def indices(seed: int, size: int, batch_size: int, step: int) -> list[int]:
    """The rows of one step: shuffled passes over `size` rows, cut into batches that run across passes."""
    wanted = range(step * batch_size, (step + 1) * batch_size)
    passes = {
        number: torch.randperm(size, generator=torch.Generator().manual_seed(seed * 1_000_003 + number)).tolist()
        for number in range(wanted.start // size, (wanted.stop - 1) // size + 1)
    }
    return [passes[position // size][position % size] for position in wanted]


B = TypeVar("B", bound=DeviceBatch)


class Stream(IterableDataset[B], Generic[B]):
    """An endless stream of batches, each a pure function of its number; `step` is where it starts.

    Of `ranks` processes that train together, each takes every `ranks`-th batch: two processes that accumulate over one
    batch take the steps of one process that accumulates over two.
    """

    step = 0
    rank, ranks = 0, 1

    @abstractmethod
    def at(self, step: int) -> B:
        """The batch of one step."""

    def __iter__(self) -> Iterator[B]:
        return (self.at(step) for step in itertools.count(self.step + self.rank, self.ranks))


class TransferStream(Stream[TrainingBatch]):
    """Rows of a domain, with rows of general text beside them when anchor_size is positive."""

    def __init__(
        self, rows: Sequence[Row], anchors: Sequence[Row], *, batch_size: int, anchor_size: int, pad: int, seed: int
    ) -> None:
        self.rows, self.anchors = rows, anchors
        self.batch_size, self.anchor_size = batch_size, anchor_size
        self.pad, self.seed = pad, seed

    def at(self, step: int) -> TrainingBatch:
        """See Stream."""
        rows, teacher = join(
            [self.rows[i] for i in indices(self.seed, len(self.rows), self.batch_size, step)], self.pad
        )
        if not self.anchors or not self.anchor_size:
            return TrainingBatch(rows, teacher, None, None)
        near = [self.anchors[i] for i in indices(self.seed + 1, len(self.anchors), self.anchor_size, step)]
        return TrainingBatch(rows, teacher, *join(near, self.pad))


class StreamModule(L.LightningDataModule, Generic[B]):
    """Hands a stream to Lightning, with validation batches, and continues it where a checkpoint left it."""

    def __init__(self, stream: Stream[B], validation: Sequence[B] = ()) -> None:
        super().__init__()
        self.stream, self.validation = stream, validation

    def train_dataloader(self) -> DataLoader:
        """Batches come whole from the stream, to each process its own."""
        trainer = self.trainer
        assert trainer is not None
        self.stream.rank, self.stream.ranks = trainer.global_rank, trainer.world_size
        return DataLoader(self.stream, batch_size=None)

    def val_dataloader(self) -> DataLoader | list[Any]:
        """All validation batches in order."""
        return DataLoader(_Batches(self.validation), batch_size=None) if self.validation else []

    def state_dict(self) -> dict[str, Any]:
        """How many batches the training loop has consumed, in all processes together."""
        trainer = self.trainer
        assert trainer is not None
        return {"step": trainer.global_step * trainer.accumulate_grad_batches * trainer.world_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the batches that were consumed."""
        self.stream.step = state_dict["step"]

    def transfer_batch_to_device(self, batch: DeviceBatch, device: torch.device, dataloader_idx: int) -> DeviceBatch:
        """Lightning does not look into frozen dataclasses."""
        return batch.to(device)


class _Batches(Dataset[B]):
    def __init__(self, batches: Sequence[B]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> B:
        return self.batches[index]
