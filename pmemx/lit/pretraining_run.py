"""One pre-training through Lightning, from untrained weights to the end of the descent."""

import random
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers.logger import DummyLogger

from pmemx.core.pretraining import PretrainingText, UntrainedModel
from pmemx.lit.exam import Criterion, Report, examine
from pmemx.lit.pretrain import PassageStream, PretrainModule, PretrainSettings


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A trained model in eval mode. forms: exact match by exam and form. passed_at: step of the pass, if any."""

    model: Any
    tokenizer: Any
    steps: int
    passed_at: int | None
    forms: dict[str, dict[str, float]]


def pretrain(
    untrained: UntrainedModel,
    text: PretrainingText,
    settings: PretrainSettings,
    *,
    seed: int,
    accelerator: str,
    report: Report,
) -> Pretrained:
    """Seeds torch's global generator; the same seed, machine and number of threads give the same weights."""
    lightning.seed_everything(seed, verbose=False)
    model, tokenizer = untrained.build(text.words(), text.punctuation())
    module = PretrainModule(model, settings)
    stream = PassageStream(tokenizer, text.passages(random.Random(f"pretrain:{seed}")), settings.batch_size)
    criterion = Criterion(text.exams(final=False), tokenizer, report)
    trainer = lightning.Trainer(
        max_steps=settings.max_steps + settings.decay,
        max_epochs=-1,
        accelerator=accelerator,
        devices=1,
        gradient_clip_val=settings.clip,
        callbacks=[criterion],
        logger=DummyLogger(),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(stream, batch_size=None))
    forms = {name: examine(module, tokenizer, exam) for name, exam in text.exams(final=True).items()}
    return Pretrained(module.model.eval(), tokenizer, trainer.global_step, criterion.passed_at, forms)
