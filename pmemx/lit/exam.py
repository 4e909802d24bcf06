"""Exams during pre-training: exact match form by form, and the criterion that ends the constant rate."""

from collections.abc import Callable, Mapping, Sequence

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from transformers import PreTrainedTokenizerBase

from pmemx.data.world.phrasing import FORMS
from pmemx.data.world.pretraining import Passage
from pmemx.lit.passages import batch_passages
from pmemx.lit.pretrain import PretrainModule

Report = Callable[[int, Mapping[str, float]], None]


def examine(
    module: PretrainModule, tokenizer: PreTrainedTokenizerBase, passages: Sequence[Passage], *, rows: int = 32
) -> dict[str, float]:
    """Exact-match rate by form. Every passage must ask each form once, in the order of FORMS."""
    module.eval()
    hits = [
        module.exact(batch_passages(tokenizer, passages[start : start + rows]).to(module.device))
        for start in range(0, len(passages), rows)
    ]
    module.train()
    return dict(zip(FORMS, torch.cat(hits).view(-1, len(FORMS)).float().mean(0).tolist(), strict=True))


class Criterion(Callback):
    """Sits exams; begins the descent of the rate once all pass or the steps are spent, and stops at its end."""

    def __init__(
        self, exams: Mapping[str, Sequence[Passage]], tokenizer: PreTrainedTokenizerBase, report: Report
    ) -> None:
        self.exams = exams
        self.tokenizer = tokenizer
        self.report = report
        self.passed_at: int | None = None

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object) -> None:
        """The report gets the loss after every step, and the mean of each exam after an exam."""
        assert isinstance(pl_module, PretrainModule)
        settings, step = pl_module.settings, trainer.global_step
        values = {"loss": float(trainer.callback_metrics["loss"])}
        if step % settings.exam_every == 0:
            for name, passages in self.exams.items():
                values[name] = sum(examine(pl_module, self.tokenizer, passages).values()) / len(FORMS)
            passed = all(values[name] >= settings.criterion for name in self.exams)
            if passed and self.passed_at is None:
                self.passed_at = step
        if pl_module.decay_from is None and (self.passed_at is not None or step >= settings.max_steps):
            pl_module.start_decay()
        trainer.should_stop = pl_module.finished
        self.report(step, values)
