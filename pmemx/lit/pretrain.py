"""Pre-training of a small base model on passages, with a constant rate until it is told to decay."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pmemx.core.pretraining import Passage
from pmemx.lit.passages import PassageBatch, batch_passages


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """AdamW with warm-up, then a constant rate until the criterion holds, then a linear descent to zero.

    warmup, decay, max_steps and exam_every count optimiser steps; max_steps bounds the constant part. rest_weight: loss
    weight of tokens that are no response. criterion: the exact-match rate that reading and the world must both reach
    in an exam before the descent begins; a descent on a step count came too early for one seed in three.
    """

    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    warmup: int = 100
    rest_weight: float = 0.1
    decay: int = 300
    batch_size: int = 14
    clip: float = 1.0
    criterion: float = 0.98
    exam_every: int = 100
    max_steps: int = 4000


class PretrainModule(lightning.LightningModule):
    """Weighted next-token loss over passages. `start_decay` begins the final linear descent of the learning rate."""

    def __init__(self, model: Any, settings: PretrainSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.decay_from: int | None = None

    def start_decay(self) -> None:
        """From the next step on the learning rate falls linearly to zero over `settings.decay` steps."""
        self.decay_from = self.global_step

    @property
    def finished(self) -> bool:
        """True when the decay has run its course."""
        return self.decay_from is not None and self.global_step >= self.decay_from + self.settings.decay

    def logits(self, batch: PassageBatch, chosen: Bool[Tensor, "row token"]) -> Float[Tensor, "position vocab"]:
        """What predicts the chosen tokens, row by row."""
        hidden = self.model.model(
            input_ids=batch.ids, attention_mask=batch.visible(), position_ids=batch.position, use_cache=False
        ).last_hidden_state
        index = batch.source[..., None].expand_as(hidden)
        return self.model.lm_head(hidden.gather(1, index)[chosen])

    def training_step(self, batch: PassageBatch) -> Tensor:
        """Mean over weights, in nats."""
        weight = batch.weight(self.settings.rest_weight)
        chosen = weight > 0
        nats = torch.nn.functional.cross_entropy(self.logits(batch, chosen), batch.ids[chosen], reduction="none")
        loss = (nats * weight[chosen]).sum() / weight.sum()
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict:
        """AdamW, its rate set step by step."""
        settings = self.settings
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
        )

        def rate(step: int) -> float:
            if self.decay_from is None:
                return min(1.0, (step + 1) / settings.warmup)
            return max(0.0, 1 - (step - self.decay_from) / settings.decay)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def transfer_batch_to_device(self, batch: PassageBatch, device: torch.device, dataloader_idx: int) -> PassageBatch:
        """Batches are dataclasses of tensors."""
        return batch.to(device)

    @torch.no_grad()
    def exact(self, batch: PassageBatch) -> Bool[Tensor, " answer"]:
        """For each continuation with a prompt, in order: whether greedy decoding gives its whole response."""
        wrong = self.logits(batch, batch.answer).argmax(-1) != batch.ids[batch.answer]
        _, owner = batch.continuation[batch.answer].unique(return_inverse=True)
        return torch.zeros(int(owner.max()) + 1, device=wrong.device).index_add(0, owner, wrong.float()) == 0


class PassageStream(torch.utils.data.IterableDataset[PassageBatch]):
    """Endless batches of passages, made as they are needed."""

    def __init__(self, tokenizer: Any, passages: Iterator[Passage], batch_size: int) -> None:
        self.tokenizer = tokenizer
        self.passages = passages
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[PassageBatch]:
        while True:
            yield batch_passages(self.tokenizer, self._take())

    def _take(self) -> Sequence[Passage]:
        return [next(self.passages) for _ in range(self.batch_size)]
