"""Pre-train a small base model on the procedural world until it reads and remembers."""

import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import lightning
import torch
from lightning.pytorch.loggers.logger import DummyLogger

from pmemx.base_model.word_tokenizer import word_tokenizer
from pmemx.core.digest import digest, fingerprint, plain
from pmemx.core.stage import Stage, Workspace
from pmemx.data.world.exam import reading_exam, world_exam
from pmemx.data.world.pretraining import Mix
from pmemx.data.world.vocabulary import PUNCTUATION, vocabulary
from pmemx.lit.exam import Criterion, examine
from pmemx.lit.pretrain import LlamaShape, PassageStream, PretrainModule, PretrainSettings
from pmemx.stage.model_card import model_card

CARDS = 64
FINAL_CARDS = 400


@dataclass(frozen=True, kw_only=True)
class PretrainStage(Stage):
    """The recipe of the bundled model. threads: CPU threads of torch; the weights depend on it in the last bits."""

    shape: LlamaShape
    mix: Mix
    settings: PretrainSettings
    accelerator: str = "cpu"
    threads: int = 1

    def run(self, workspace: Workspace) -> dict[str, float]:
        """Writes the folder <run>/base_model, which transformers loads; one that is already there with the same recipe is only read.

        Returns the mean and the worst form of each exam: `reading` on cards of entities that pre-training never named,
        `world` on all facts of the world.
        """
        folder = workspace.folder / "base_model"
        recipe = {"seed": workspace.seed} | {"stage": plain(self)}
        if (folder / "card.json").exists():
            card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
            if card["recipe_digest"] == digest(recipe):
                return card["scores"]
        torch.set_num_threads(self.threads)
        lightning.seed_everything(workspace.seed, verbose=False)
        tokenizer = word_tokenizer(vocabulary(), PUNCTUATION, context=self.shape.context)
        module = PretrainModule(self.shape.build(tokenizer), self.settings)
        passages = self.mix.passages(random.Random(f"pretrain:{workspace.seed}"))
        stream = PassageStream(tokenizer, passages, self.settings.batch_size)
        exams = {"reading": reading_exam(1, CARDS), "world": world_exam()[::4]}
        start = time.process_time()
        with workspace.progress("Pre-train", total=self.settings.max_steps + self.settings.decay) as advance:

            def report(step: int, values: Mapping[str, float]) -> None:
                advance(1, " ".join(f"{name} {value:.3f}" for name, value in values.items()))
                if step % self.settings.exam_every == 0:
                    workspace.metrics.write("pretrain", values, step=step)

            criterion = Criterion(exams, tokenizer, report)
            steps = self._fit(module, stream, criterion)
        seconds = time.process_time() - start
        module.eval()
        forms = {
            "reading": examine(module, tokenizer, reading_exam(2, FINAL_CARDS)),
            "world": examine(module, tokenizer, world_exam()),
        }
        scores = {name: sum(rates.values()) / len(rates) for name, rates in forms.items()}
        scores |= {f"{name}/worst_form": min(rates.values()) for name, rates in forms.items()}
        module.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        card = {
            "name": "bundled",
            "recipe": recipe,
            "recipe_digest": digest(recipe),
            "steps": steps,
            "criterion_passed_at": criterion.passed_at,
            "cpu_seconds": round(seconds),
            "parameters": module.model.num_parameters(),
            "vocabulary": len(tokenizer),
            "fingerprint": fingerprint(module.model),
            "scores": scores,
            "scores_by_form": forms,
            "torch": torch.__version__,
        }
        _write(folder, card)
        if criterion.passed_at is None:
            workspace.ledger.notes.append(f"the criterion {self.settings.criterion} was never reached; raise max_steps")
        return scores

    def _fit(self, module: PretrainModule, stream: PassageStream, criterion: Criterion) -> int:
        trainer = lightning.Trainer(
            max_steps=self.settings.max_steps + self.settings.decay,
            max_epochs=-1,
            accelerator=self.accelerator,
            devices=1,
            gradient_clip_val=self.settings.clip,
            callbacks=[criterion],
            logger=DummyLogger(),
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, torch.utils.data.DataLoader(stream, batch_size=None))
        return trainer.global_step


def _write(folder: Path, card: Mapping[str, object]) -> None:
    (folder / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(card), encoding="utf-8")
