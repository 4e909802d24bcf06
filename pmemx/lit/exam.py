"""Exams during pre-training: exact match form by form, and the criterion that ends the constant rate."""

from collections.abc import Callable, Mapping
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from pmemx.core.pretraining import Exam
from pmemx.lit.passages import batch_passages
from pmemx.lit.pretrain import PretrainModule

Report = Callable[[int, Mapping[str, float]], None]
"""Called after every optimiser step with the steps done, the loss, and the scores of an exam if one was sat."""


def examine(module: PretrainModule, tokenizer: Any, exam: Exam, *, rows: int = 32) -> dict[str, float]:
    """Exact-match rate by form; `rows` passages at a time. Leaves the module in train mode."""
    module.eval()
    hits = [
        module.exact(batch_passages(tokenizer, exam.passages[start : start + rows]).to(module.device))
        for start in range(0, len(exam.passages), rows)
    ]
    module.train()
    rates = torch.cat(hits).view(-1, len(exam.forms)).float().mean(0)
    return dict(zip(exam.forms, rates.tolist(), strict=True))


class Criterion(Callback):
    """Sits exams; begins the descent of the rate once all pass or the steps are spent, and stops at its end."""

    def __init__(self, exams: Mapping[str, Exam], tokenizer: Any, report: Report) -> None:
        self.exams = exams
        self.tokenizer = tokenizer
        self.report = report
        self.passed_at: int | None = None

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Runs after every optimiser step."""
        assert isinstance(pl_module, PretrainModule)
        settings, step = pl_module.settings, trainer.global_step
        values = {"loss": float(trainer.callback_metrics["loss"])}
        if step % settings.exam_every == 0:
            for name, exam in self.exams.items():
                values[name] = sum(examine(pl_module, self.tokenizer, exam).values()) / len(exam.forms)
            if self.passed_at is None and all(values[name] >= settings.criterion for name in self.exams):
                self.passed_at = step
        if pl_module.decay_from is None and (self.passed_at is not None or step >= settings.max_steps):
            pl_module.start_decay()
        trainer.should_stop = pl_module.finished
        self.report(step, values)
