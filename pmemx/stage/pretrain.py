"""Pre-train a small base model until it reads and remembers, and write it as a folder that transformers loads."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pmemx.core.digest import digest, fingerprint, plain
from pmemx.core.pretraining import PretrainingText, UntrainedModel
from pmemx.core.stage import Stage, Workspace
from pmemx.lit.pretrain import PretrainSettings
from pmemx.lit.pretraining_run import pretrain
from pmemx.stage.model_card import model_card


@dataclass(frozen=True, kw_only=True)
class PretrainStage(Stage):
    """The recipe of the bundled model. threads: CPU threads of torch; the weights depend on it in the last bits."""

    shape: UntrainedModel
    text: PretrainingText
    settings: PretrainSettings
    accelerator: str = "cpu"
    threads: int = 1

    def run(self, workspace: Workspace) -> dict[str, float]:
        """Writes <run>/base_model: weights, tokenizer, card.json and README.md.

        Returns the exact-match rate of each exam, in the mean over its forms and in the worst form. A folder that
        holds a model of the same recipe is only read.
        """
        folder = workspace.folder / "base_model"
        recipe = {"seed": workspace.seed, "stage": plain(self)}
        if (folder / "card.json").exists():
            card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
            if card["recipe_digest"] == digest(recipe):
                return card["scores"]
        settings, start = self.settings, time.process_time()
        torch.set_num_threads(self.threads)
        with workspace.progress("Pre-train", total=settings.max_steps + settings.decay) as advance:

            def report(step: int, values: Mapping[str, float]) -> None:
                advance(1, " ".join(f"{name} {value:.3f}" for name, value in values.items()))
                if step % settings.exam_every == 0:
                    workspace.metrics.write("pretrain", values, step=step)

            made = pretrain(
                self.shape, self.text, settings, seed=workspace.seed, accelerator=self.accelerator, report=report
            )
        scores = {name: sum(rates.values()) / len(rates) for name, rates in made.forms.items()}
        scores |= {f"{name}/worst_form": min(rates.values()) for name, rates in made.forms.items()}
        made.model.save_pretrained(folder)
        made.tokenizer.save_pretrained(folder)
        card = {
            "recipe": recipe,
            "recipe_digest": digest(recipe),
            "steps": made.steps,
            "criterion_passed_at": made.passed_at,
            "cpu_seconds": round(time.process_time() - start),
            "parameters": made.model.num_parameters(),
            "vocabulary": len(made.tokenizer),
            "fingerprint": fingerprint(made.model),
            "scores": scores,
            "scores_by_form": made.forms,
            "torch": torch.__version__,
        }
        (folder / "README.md").write_text(model_card(card), encoding="utf-8")
        # Last, so that a folder with a card is whole.
        (folder / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if made.passed_at is None:
            workspace.ledger.notes.append(
                f"pretrain: the criterion {settings.criterion} was not reached; raise max_steps"
            )
        return scores
