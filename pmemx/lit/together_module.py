"""The Lightning module that trains experts together with their gate, through the layer that will serve them."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from jaxtyping import Bool, Float
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from pmemx.core.errors import ConfigError
from pmemx.core.gate import NEVER, Gate, SiteGate
from pmemx.core.gate_loss import localised_balance_loss
from pmemx.core.routing import Observation
from pmemx.core.shares import shares
from pmemx.core.trainable import TrainableFactors
from pmemx.lit.gate_module import GateBatch, GateLosses
from pmemx.lit.loads import Loads
from pmemx.lit.settings import TrainerSettings
from pmemx.runtime.attach import Routed

FOREIGN = ("supervision", "mole_balance", "prediction_entropy")
"""Losses that mean nothing here: no expert belongs to a domain, and none is frozen."""


class TogetherModule(L.LightningModule):
    """Gate and factors have parameters that train, by the answers' cross-entropy; the model stays as it is.

    The terms of the gate are those of GateLosses, taken at every place of decision over the experts that are there, and
    averaged over the places where more than one is. localised_balance is LoRAMoE's (arXiv:2312.09979): experts fall into
    two halves, rows into two types, and a half is of the type that it agrees with. factors must be those of the bank that is
    attached.

    knows: by choice of a row, whether it asks for knowledge, which is the first half's.
    """

    def __init__(
        self,
        routed: Routed,
        gate: Gate,
        factors: TrainableFactors,
        losses: GateLosses,
        knows: Sequence[bool],
        settings: TrainerSettings,
    ) -> None:
        super().__init__()
        check_losses(losses)
        # In a tuple, so that Lightning neither moves, counts nor saves the frozen model.
        self._routed = (routed,)
        self.gate, self.factors, self.losses, self.settings = gate, factors, losses, settings
        self._knows = tuple(knows)
        self._loads = Loads(gate, routed.bank) if isinstance(gate, SiteGate) else None

    def training_step(self, batch: GateBatch, batch_idx: int) -> Tensor:
        """The weighted sum of the losses, each logged under its own name."""
        self.factors.bind()
        routed, places = self._routed[0], list[Tensor]()

        def observe(observation: Observation) -> None:
            assert observation.scores is not None
            if any(observation.scores is scores for scores in places):
                return
            places.append(observation.scores)
            if self._loads is not None:
                self._loads.count(observation)

        with routed.observed(observe):
            language_model = self._language_model(batch)
        terms = {"language_model": language_model, **self._of_gate(places, batch)}
        total = sum((getattr(self.losses, name) * value for name, value in terms.items()), torch.zeros(()))
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()})
        self.log("train/loss", total.detach())
        return total

    def validation_step(self, batch: GateBatch, batch_idx: int) -> None:
        """Cross-entropy of validation rows, averaged over their answer tokens."""
        self.factors.bind()
        self.log("val/loss", self._language_model(batch), batch_size=len(batch.rows.labels))

    def _language_model(self, batch: GateBatch) -> Float[Tensor, ""]:
        rows, routed = batch.rows, self._routed[0]
        with routed.given(prompt=rows.prompt):
            said = routed.model(input_ids=rows.ids, attention_mask=rows.attention.long(), use_cache=False)
        return F.cross_entropy(rows.at_answers(said.logits).float(), rows.labels)

    def _of_gate(self, places: Sequence[Tensor], batch: GateBatch) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {}
        for place in places:
            for scores in place.unbind(dim=2) if place.dim() == 4 else [place]:
                for name, value in self._at(scores, batch).items():
                    found.setdefault(name, []).append(value)
        return {name: torch.stack(values).mean() for name, values in found.items()}

    def _at(self, scores: Float[Tensor, "batch decision choice"], batch: GateBatch) -> dict[str, Tensor]:
        attended = batch.rows.attention
        heard = attended if scores.shape[1] == attended.shape[1] else attended.any(dim=1, keepdim=True)
        there = (scores.detach()[heard] > NEVER / 2).any(dim=0)
        scores = scores[..., there].float()
        if scores.shape[-1] < 2:
            return {}
        if self.losses.balance and self.losses.balance_k > scores.shape[-1]:
            raise ConfigError(
                f"losses.balance_k = {self.losses.balance_k} is larger than the {scores.shape[-1]} experts at a site; set it "
                f"to the k of the selection, and that to at most so many"
            )
        decisions = scores[heard]
        terms = self.losses.of_decisions(decisions, torch.zeros_like(decisions[:, 0], dtype=torch.long))
        terms |= self.losses.of_place(decisions)
        if self.losses.localised_balance:
            importance = shares(scores).masked_fill(~heard[..., None], 0).sum(dim=1)[:, int(there[0]) :]
            knows = torch.tensor(self._knows, device=importance.device)[batch.choice]
            own, delta = same_type(importance.shape[1], knows), self.losses.localised_delta
            terms["localised_balance"] = localised_balance_loss(importance, own, delta)
        return terms

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Then the gate's load bias, where it has one, follows the load of the step."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self._loads is not None:
            self._loads.settle(self.trainer.strategy)

    def configure_optimizers(self) -> Any:
        """AdamW with the schedule advanced every step."""
        optimizer, schedule = self.settings.optimizer(self)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def same_type(num_experts: int, knows: Bool[Tensor, " batch"]) -> Bool[Tensor, "batch expert"]:
    """Whether an expert is of a row's type: the first half of the experts is for rows that ask for knowledge."""
    first = torch.arange(num_experts, device=knows.device) < num_experts // 2
    return first[None] == knows[:, None]


def check_losses(losses: GateLosses) -> None:
    """Raises ConfigError for a loss that needs experts of known domains, or frozen ones."""
    if foreign := [name for name in FOREIGN if getattr(losses, name)]:
        raise ConfigError(
            f"losses.{foreign[0]} = {getattr(losses, foreign[0])} means nothing to experts that are trained together with "
            f"their gate; set it to 0"
        )
    if not losses.language_model:
        raise ConfigError("losses.language_model = 0 teaches the experts nothing; give it a weight, 1 as usual")
