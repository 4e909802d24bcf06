"""Context distillation: the base with the document in context teaches the base with an expert and without it."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from pmemx.core.distill import Distill, Predictions, divergence
from pmemx.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ContextKL(Distill):
    """temperature^2 * KL(teacher || student), mean over answer positions (arXiv:2209.15189)."""

    temperature: float = 1.0
    needs_teacher = True

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ConfigError(f"temperature {self.temperature} is not positive; 1 is the usual value")

    def __call__(
        self, student: Predictions, teacher: Predictions | None, labels: Int[Tensor, " position"]
    ) -> Float[Tensor, ""]:
        """In nats per token; zero when the student says what the teacher says."""
        assert teacher is not None
        return divergence(teacher.logits, student.logits, self.temperature)


@dataclass(frozen=True, kw_only=True)
class DeepContext(ContextKL):
    """Deep context distillation: logits and hidden states (arXiv:2503.08727).

    logits * KL + hidden * mean over layers of |h_s - h_t|_1 / |h_t|_1. The embedding layer is left out of the mean: a
    low-rank update of linear layers cannot move it, so it would only dilute the term.
    """

    logits: float = 1.0
    hidden: float = 1.0
    needs_hidden = True

    def __call__(
        self, student: Predictions, teacher: Predictions | None, labels: Int[Tensor, " position"]
    ) -> Float[Tensor, ""]:
        """The weighted sum of both terms; zero when logits and hidden states agree."""
        assert teacher is not None and teacher.hidden is not None and student.hidden is not None
        target = teacher.hidden.detach().float()
        distance = (student.hidden.float() - target).abs().mean(dim=(1, 2)) / target.abs().mean(dim=(1, 2))
        return (
            self.logits * divergence(teacher.logits, student.logits, self.temperature) + self.hidden * distance.mean()
        )
