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
from pmemx.core.routing import Routing
from pmemx.lit.settings import TrainerSettings
from pmemx.lit.stream import DeviceBatch, Stream, indices
from pmemx.runtime.attach import Routed


@dataclass(frozen=True, kw_only=True)
class GateLosses:
    """Weights of the losses of a gate; a weight of 0 leaves the term out, and without language_model a context gate is
    trained without passes of the model.

    language_model: cross-entropy of the answers through the routed model. supervision: cross-entropy of the scores
    against the true choice. balance (Switch, arXiv:2101.03961), z (ST-MoE, arXiv:2202.08906), entropy (per decision) and
    mutual_information (Mod-Squad, arXiv:2212.08066, taken over the batch) act on the selection's shares.
    """

    language_model: float = 1.0
    supervision: float = 1.0
    balance: float = 0.0
    z: float = 0.0
    entropy: float = 0.0
    mutual_information: float = 0.0

    def __post_init__(self) -> None:
        if not any(vars(self).values()):
            raise ConfigError("all losses of the gate have weight 0; give at least one a weight")


def balance_loss(share: Float[Tensor, "decision choice"]) -> Float[Tensor, ""]:
    """choices * sum_c f_c P_c: 1 when balanced, `choices` when collapsed; f_c is the share of decisions whose best choice is c."""
    best = F.one_hot(share.argmax(dim=-1), share.shape[1]).to(share.dtype)
    return share.shape[1] * (best.mean(dim=0) * share.mean(dim=0)).sum()


def z_loss(scores: Float[Tensor, "decision choice"]) -> Float[Tensor, ""]:
    """Mean squared log-sum-exp of the scores: keeps them small."""
    return scores.logsumexp(dim=-1).square().mean()


def entropy_loss(share: Float[Tensor, "decision choice"]) -> Float[Tensor, ""]:
    """Mean entropy of a decision, in nats: low when decisions are sharp."""
    return torch.special.entr(share).sum(dim=-1).mean()


def mutual_information_loss(share: Float[Tensor, "decision choice"]) -> Float[Tensor, ""]:
    """-(H(mean share) - mean H(share)): low when decisions are sharp and balanced over the batch."""
    return entropy_loss(share) - torch.special.entr(share.mean(dim=0)).sum()


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
        # In a tuple, so that Lightning neither moves, counts nor saves the frozen model.
        self._routed = (routed,)
        self.gate, self.losses, self.settings = gate, losses, settings

    def training_step(self, batch: GateBatch, batch_idx: int) -> Tensor:
        """The weighted sum of the losses, each logged under its own name."""
        routed = self._routed[0]
        decisions: list[tuple[Tensor, Tensor]] = []

        def observe(site: str, scores: Tensor | None, routing: Routing) -> None:
            assert scores is not None
            mask = batch.rows.attention if scores.shape[1] > 1 else torch.ones_like(batch.rows.attention[:, :1])
            choice = batch.choice[:, None].expand(mask.shape)
            if not decisions or scores is not seen[-1]:
                decisions.append((scores[mask], choice[mask]))
                seen.append(scores)

        seen: list[Tensor] = []
        routed.observer = observe
        attention = batch.rows.attention.long()
        logits: Tensor | None = None
        try:
            with routed.given(prompt=batch.rows.prompt, domain=batch.choice):
                if self.losses.language_model or isinstance(self.gate, SiteGate):
                    logits = routed.model(input_ids=batch.rows.ids, attention_mask=attention, use_cache=False).logits
                else:
                    decisions.append((routed.decide(batch.rows.ids, attention)[:, 0], batch.choice))
        finally:
            routed.observer = None
        speaks = batch.speaks[:, None].expand(batch.rows.answer.shape)[batch.rows.answer]
        scores = torch.cat([scores for scores, _ in decisions])
        choice = torch.cat([choice for _, choice in decisions])
        share = scores.float().softmax(dim=-1)
        weights = self.losses
        terms: dict[str, Tensor] = {}
        if weights.language_model and logits is not None and speaks.any():
            said = batch.rows.at_answers(logits)[speaks]
            terms["language_model"] = F.cross_entropy(said.float(), batch.rows.labels[speaks])
        if weights.supervision:
            terms["supervision"] = F.cross_entropy(scores.float(), choice)
        for name, value in (
            ("balance", balance_loss(share)),
            ("z", z_loss(scores)),
            ("entropy", entropy_loss(share)),
            ("mutual_information", mutual_information_loss(share)),
        ):
            if getattr(weights, name):
                terms[name] = value
        total = sum((getattr(weights, name) * value for name, value in terms.items()), torch.zeros(()))
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()})
        self.log("train/accuracy", (scores.argmax(dim=-1) == choice).float().mean())
        self.log("train/loss", total.detach())
        return total

    def configure_optimizers(self) -> Any:
        """AdamW with the schedule advanced every step."""
        optimizer, schedule = self.settings.optimizer(self.gate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
