"""The Lightning module that trains one adapter against an objective, with or without the locality term."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from pmemx.core.distill import Distill, Locality, Predictions, divergence
from pmemx.core.encoding import Batch
from pmemx.lit.settings import TrainerSettings
from pmemx.lit.stream import TrainingBatch


class ExpertModule(L.LightningModule):
    """A frozen base with one trainable adapter; logs nats per token."""

    def __init__(
        self, model: nn.Module, objective: Distill, locality: Locality | None, settings: TrainerSettings
    ) -> None:
        super().__init__()
        self.model, self.objective, self.locality, self.settings = model, objective, locality, settings
        self.strict_loading = False

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        """Objective on the domain's rows plus weighted KL to the base on the general rows."""
        loss = self._objective(batch)
        self.log("train/objective", loss.detach())
        if self.locality is not None and batch.anchors is not None and batch.anchor_teacher is not None:
            student = predict(self.model, batch.anchors, hidden=False)
            drift = divergence(batch.anchor_teacher.logits, student.logits)
            self.log("train/locality", drift.detach())
            loss = loss + self.locality.weight * drift
        self.log("train/loss", loss.detach())
        return loss

    def validation_step(self, batch: TrainingBatch, batch_idx: int) -> None:
        """Objective on validation rows, averaged over their answer tokens."""
        self.log("val/loss", self._objective(batch), batch_size=len(batch.rows.labels))

    def _objective(self, batch: TrainingBatch) -> Tensor:
        student = predict(self.model, batch.rows, hidden=self.objective.needs_hidden)
        return self.objective(student, batch.teacher, batch.rows.labels)

    def configure_optimizers(self) -> Any:
        """AdamW with the schedule advanced every step."""
        optimizer, schedule = self.settings.optimizer(self)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapter alone: the frozen base is not ours to store."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}


def predict(model: nn.Module, batch: Batch, *, hidden: bool) -> Predictions:
    """One pass; what the model says at the answer tokens."""
    out = model(
        input_ids=batch.ids, attention_mask=batch.attention.long(), output_hidden_states=hidden, use_cache=False
    )
    states = torch.stack([batch.at_answers(layer) for layer in out.hidden_states[1:]]) if hidden else None
    return Predictions(batch.at_answers(out.logits), states)
