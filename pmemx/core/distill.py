"""The interface of distillation objectives: student and teacher at the same positions to a loss."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pmemx.core.errors import ConfigError

Rows = Literal["documents", "answers"]


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says at n positions: logits over the next token, and hidden states by layer (embedding left out)."""

    logits: Float[Tensor, "position vocab"]
    hidden: Float[Tensor, "layer position width"] | None = None

    def to(self, device: torch.device) -> "Predictions":
        """The same predictions on another device."""
        return Predictions(self.logits.to(device), None if self.hidden is None else self.hidden.to(device))


@dataclass(frozen=True, kw_only=True)
class Locality:
    """A term that any objective can add: weight * KL(base || student) on the base's own text, in nats per token.

    batch_size rows of general text enter every step. It buys back, at some compute, what an always-on expert would make the base forget
    (arXiv:2306.09306).
    """

    weight: float = 1.0
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.weight <= 0 or self.batch_size < 1:
            raise ConfigError(
                f"locality of weight {self.weight} on {self.batch_size} rows does nothing; use locality=null to leave it out"
            )


class Distill(ABC):
    """A loss between student and teacher in nats per token. A frozen dataclass of its weights and temperatures.

    rows: what the student is trained on, whole documents or the answers to prompts. needs_teacher: whether the base
    reads the document in context as a teacher. needs_hidden: whether hidden states enter the loss.
    """

    rows: Rows = "answers"
    needs_teacher: bool = False
    needs_hidden: bool = False

    @abstractmethod
    def __call__(
        self, student: Predictions, teacher: Predictions | None, labels: Int[Tensor, " position"]
    ) -> Float[Tensor, ""]:
        """Mean over positions; the teacher receives no gradient."""


def divergence(
    target: Float[Tensor, "position vocab"], student: Float[Tensor, "position vocab"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """temperature^2 * KL(target || student) in nats, mean over positions; no gradient reaches the target."""
    log_target = F.log_softmax(target.detach().float() / temperature, dim=-1)
    log_student = F.log_softmax(student.float() / temperature, dim=-1)
    # "batchmean" divides by the first dimension only, which is the position here.
    return temperature**2 * F.kl_div(log_student, log_target, log_target=True, reduction="batchmean")
