"""The Lightning module that trains a gate over frozen experts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from pmemx.core.encoding import Batch, Encoded, collate
from pmemx.core.errors import ConfigError
from pmemx.core.gate import Gate, SiteGate
from pmemx.core.gate_loss import (
    balance_loss,
    entropy_loss,
    importance_loss,
    mutual_information_loss,
    supervision_loss,
    z_loss,
)
from pmemx.core.routing import Observation
from pmemx.core.shares import shares
from pmemx.lit.settings import TrainerSettings
from pmemx.lit.stream import DeviceBatch, Stream, indices
from pmemx.runtime.attach import Routed


@dataclass(frozen=True, kw_only=True)
class GateLosses:
    """Weights of the losses of a gate; a weight of 0 leaves the term out, and without language_model a context gate is
    trained without passes of the model.

    language_model: cross-entropy of the answers through the routed model. supervision: cross-entropy of the scores
    against the true choice. The others are those of core.gate_loss, over the decisions of a batch; balance_k is the
    number of choices that count in balance.
    """

    language_model: float = 1.0
    supervision: float = 1.0
    balance: float = 0.0
    balance_k: int = 1
    importance: float = 0.0
    z: float = 0.0
    entropy: float = 0.0
    mutual_information: float = 0.0

    def __post_init__(self) -> None:
        if not any(weight for name, weight in vars(self).items() if name != "balance_k"):
            raise ConfigError("all losses of the gate have weight 0; give at least one a weight")
        if self.balance_k < 1:
            raise ConfigError(f"losses.balance_k = {self.balance_k} counts no choice; set it to the k of the selection")

    def of_decisions(
        self, scores: Float[Tensor, "decision choice"], choice: Int[Tensor, " decision"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Every term but language_model that has a weight, before it is weighed."""
        scores = scores.float()
        share = shares(scores)
        terms = {
            "supervision": lambda: supervision_loss(scores, choice),
            "balance": lambda: balance_loss(share, self.balance_k),
            "importance": lambda: importance_loss(share),
            "z": lambda: z_loss(scores),
            "entropy": lambda: entropy_loss(share),
            "mutual_information": lambda: mutual_information_loss(share),
        }
        return {name: term() for name, term in terms.items() if getattr(self, name)}


@dataclass(frozen=True, eq=False)
class GateBatch(DeviceBatch):
    """Rows of a mixture; choice is the true one (0: no expert), speaks marks rows whose response is to be learnt."""

    rows: Batch
    choice: Int[Tensor, " batch"]
    speaks: Bool[Tensor, " batch"]

    def to(self, device: torch.device) -> "GateBatch":
        """The same batch on another device."""
        return GateBatch(self.rows.to(device), self.choice.to(device), self.speaks.to(device))


@dataclass(frozen=True, eq=False)
class Source:
    """Encoded rows of one domain, the choice they belong to, and how many of them enter every batch."""

    rows: tuple[Encoded, ...]
    choice: int
    per_batch: int
    speaks: bool = True


class MixtureStream(Stream[GateBatch]):
    """Batches with a fixed share of every source, shuffled within each source."""

    def __init__(self, sources: Sequence[Source], *, pad: int, seed: int) -> None:
        self.sources = [source for source in sources if source.per_batch > 0]
        self.pad, self.seed = pad, seed

    def at(self, step: int) -> GateBatch:
        """See Stream."""
        rows, choice, speaks = [], [], []
        for number, source in enumerate(self.sources):
            order = indices(self.seed + 7919 * number, len(source.rows), source.per_batch, step)
            rows += [source.rows[i] for i in order]
            choice += [source.choice] * source.per_batch
            speaks += [source.speaks] * source.per_batch
        return GateBatch(collate(rows, self.pad), torch.tensor(choice), torch.tensor(speaks))


class GateModule(L.LightningModule):
    """Only the gate has parameters that train; the model and the bank stay as they are."""

    def __init__(self, routed: Routed, gate: Gate, losses: GateLosses, settings: TrainerSettings) -> None:
        super().__init__()
        if losses.balance_k > gate.shape.num_choices:
            raise ConfigError(
                f"losses.balance_k = {losses.balance_k} is larger than the {gate.shape.num_choices} choices of the gate, "
                f"no expert among them; set it to the k of the selection"
            )
        # In a tuple, so that Lightning neither moves, counts nor saves the frozen model.
        self._routed = (routed,)
        self.gate, self.losses, self.settings = gate, losses, settings

    def training_step(self, batch: GateBatch, batch_idx: int) -> Tensor:
        """The weighted sum of the losses, each logged under its own name."""
        scores, choice, logits = self._decisions(batch)
        terms = self.losses.of_decisions(scores, choice)
        speaks = batch.speaks[:, None].expand(batch.rows.answer.shape)[batch.rows.answer]
        if self.losses.language_model and logits is not None and speaks.any():
            said = batch.rows.at_answers(logits)[speaks]
            terms["language_model"] = F.cross_entropy(said.float(), batch.rows.labels[speaks])
        total = sum((getattr(self.losses, name) * value for name, value in terms.items()), torch.zeros(()))
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()})
        self.log("train/accuracy", (scores.argmax(dim=-1) == choice).float().mean())
        self.log("train/loss", total.detach())
        return total

    def _decisions(self, batch: GateBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Scores [decision, choice] with the true choice of each, and logits if there was a pass of the model.

        A decision that sites share counts once; one that is taken at every token counts at the attended ones.
        """
        routed, attention = self._routed[0], batch.rows.attention.long()
        seen: list[Tensor] = []

        def observe(observation: Observation) -> None:
            assert observation.scores is not None
            if not any(observation.scores is scores for scores in seen):
                seen.append(observation.scores)

        alone = isinstance(self.gate, SiteGate) and self.gate.trains_alone
        names = self.gate.shape.experts
        active = [[names[own - 1]] if own else [] for own in batch.choice.tolist()] if alone else None
        logits: Tensor | None = None
        with routed.observed(observe), routed.given(prompt=batch.rows.prompt, domain=batch.choice, active=active):
            if self.losses.language_model or isinstance(self.gate, SiteGate):
                logits = routed.model(input_ids=batch.rows.ids, attention_mask=attention, use_cache=False).logits
            else:
                seen.append(routed.decide(batch.rows.ids, attention))
        decisions = [_counted(scores, batch) for scores in seen]
        scores, choice = torch.cat([scores for scores, _ in decisions]), torch.cat([choice for _, choice in decisions])
        if alone:
            own = F.one_hot(choice, scores.shape[1]).bool()
            own[:, 0] = True
            scores = scores.masked_fill(~own, float("-inf"))
        return scores, choice, logits

    def configure_optimizers(self) -> Any:
        """AdamW with the schedule advanced every step."""
        optimizer, schedule = self.settings.optimizer(self.gate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _counted(
    scores: Float[Tensor, "batch decision *site choice"], batch: GateBatch
) -> tuple[Float[Tensor, "counted choice"], Int[Tensor, " counted"]]:
    """Decisions about rows, or about their attended tokens, with the true choice of each."""
    attended = batch.rows.attention
    counted = attended if scores.shape[1] == attended.shape[1] else attended.any(dim=1, keepdim=True)
    choice = batch.choice[:, None].expand(counted.shape)[counted]
    found = scores[counted].flatten(1, -2) if scores.dim() == 4 else scores[counted][:, None]
    return found.flatten(0, 1), choice.repeat_interleave(found.shape[1])
