"""The Lightning module that trains a gate over frozen experts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from jaxtyping import Bool, Float, Int
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from pmemx.core.encoding import Batch, Encoded, collate
from pmemx.core.errors import ConfigError
from pmemx.core.gate import Gate, SiteGate
from pmemx.core.gate_loss import (
    balance_loss,
    entropy_loss,
    importance_loss,
    localised_balance_loss,
    mole_balance_loss,
    mutual_information_loss,
    prediction_entropy_loss,
    supervision_loss,
    z_loss,
)
from pmemx.core.routing import Observation
from pmemx.core.shares import shares
from pmemx.lit.loads import Loads
from pmemx.lit.settings import TrainerSettings
from pmemx.lit.stream import DeviceBatch, Stream, indices
from pmemx.runtime.attach import Routed


@dataclass(frozen=True, kw_only=True)
class GateLosses:
    """Weights of the losses of a gate; a weight of 0 leaves the term out, and without language_model and
    prediction_entropy a context gate is trained without passes of the model.

    language_model: cross-entropy of the answers through the routed model. supervision: cross-entropy of the scores
    against the true choice. prediction_entropy: of what the routed model predicts along the prompts; neither answers nor
    true choices enter it. localised_balance is taken over the rows of a batch, site by site, each expert being a type of
    its own and a row of no expert of none. The others are those of core.gate_loss, over the decisions of a batch: balance,
    importance and mutual_information at every place that decides, averaged over the places, as papers add them layer by
    layer; the rest over all decisions together.
    balance_k is the number of choices that count in balance. localised_delta: see core.gate_loss.localised_balance_loss.
    """

    language_model: float = 1.0
    supervision: float = 1.0
    balance: float = 0.0
    balance_k: int = 1
    importance: float = 0.0
    z: float = 0.0
    entropy: float = 0.0
    mutual_information: float = 0.0
    mole_balance: float = 0.0
    localised_balance: float = 0.0
    localised_delta: float = 0.1
    prediction_entropy: float = 0.0

    def __post_init__(self) -> None:
        if not any(weight for name, weight in vars(self).items() if name not in ("balance_k", "localised_delta")):
            raise ConfigError("all losses of the gate have weight 0; give at least one a weight")
        if self.balance_k < 1:
            raise ConfigError(f"losses.balance_k = {self.balance_k} counts no choice; set it to the k of the selection")
        if not -1 < self.localised_delta < 1:
            raise ConfigError(
                f"losses.localised_delta = {self.localised_delta} leaves some experts no importance; it lies between -1 and 1"
            )

    @property
    def needs_model(self) -> bool:
        """Whether a term reads what the routed model says."""
        return bool(self.language_model or self.prediction_entropy)

    @property
    def asks_places(self) -> bool:
        """Whether of_place has a term."""
        return bool(self.balance or self.importance or self.mutual_information)

    def of_decisions(
        self, scores: Float[Tensor, "decision choice"], choice: Int[Tensor, " decision"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Every term that has a weight and reads decisions wherever they were taken, before it is weighed."""
        scores = scores.float()
        terms = {
            "supervision": lambda: supervision_loss(scores, choice),
            "z": lambda: z_loss(scores),
            "entropy": lambda: entropy_loss(shares(scores)),
            "mole_balance": lambda: mole_balance_loss(shares(scores)),
        }
        return {name: term() for name, term in terms.items() if getattr(self, name)}

    def of_place(self, scores: Float[Tensor, "decision choice"]) -> dict[str, Float[Tensor, ""]]:
        """Every term that has a weight and asks how evenly one place uses its choices: what is even over all sites
        together may be collapsed at each."""
        share = shares(scores.float())
        terms = {
            "balance": lambda: balance_loss(share, self.balance_k),
            "importance": lambda: importance_loss(share),
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
    """Encoded rows of one domain, the choice they belong to, and how many of them enter every batch.

    speaks: their responses are to be learnt. resembles: they belong to no expert, and are worded like an expert's.
    """

    rows: tuple[Encoded, ...]
    choice: int
    per_batch: int
    speaks: bool = True
    resembles: bool = False


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
        self._loads = Loads(gate, routed.bank) if isinstance(gate, SiteGate) else None

    def training_step(self, batch: GateBatch, batch_idx: int) -> Tensor:
        """The weighted sum of the losses, each logged under its own name."""
        seen, logits = self._seen(batch)
        scores, choice = _joined([_counted(scores, batch) for scores in seen])
        terms = self.losses.of_decisions(scores, choice)
        places = [place for scores in seen for place in _places(scores)]
        if self.losses.asks_places:
            of_places = [self.losses.of_place(_counted(place, batch)[0]) for place in places]
            terms |= {name: torch.stack([found[name] for found in of_places]).mean() for name in of_places[0]}
        if self.losses.localised_balance:
            own = F.one_hot(batch.choice, self.gate.shape.num_choices)[:, 1:].bool()
            delta = self.losses.localised_delta
            found = [localised_balance_loss(_importance(place, batch), own, delta) for place in places]
            terms["localised_balance"] = torch.stack(found).mean()
        speaks = batch.speaks[:, None].expand(batch.rows.answer.shape)[batch.rows.answer]
        if self.losses.language_model and logits is not None and speaks.any():
            said = batch.rows.at_answers(logits)[speaks]
            terms["language_model"] = F.cross_entropy(said.float(), batch.rows.labels[speaks])
        if self.losses.prediction_entropy and logits is not None:
            terms["prediction_entropy"] = prediction_entropy_loss(logits, batch.rows.prompt)
        total = sum((getattr(self.losses, name) * value for name, value in terms.items()), torch.zeros(()))
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()})
        self.log("train/accuracy", (scores.argmax(dim=-1) == choice).float().mean())
        self.log("train/loss", total.detach())
        return total

    def _seen(self, batch: GateBatch) -> tuple[list[Tensor], Tensor | None]:
        """Scores [batch, decision, *site, choice] of whoever decides, once each, and logits if there was a pass of the model."""
        routed, attention = self._routed[0], batch.rows.attention.long()
        seen: list[Tensor] = []

        def observe(observation: Observation) -> None:
            assert observation.scores is not None
            if any(observation.scores is scores for scores in seen):
                return
            seen.append(observation.scores)
            if self._loads is not None:
                self._loads.count(observation)

        alone = isinstance(self.gate, SiteGate) and self.gate.trains_alone
        names = self.gate.shape.experts
        active = [[names[own - 1]] if own else [] for own in batch.choice.tolist()] if alone else None
        logits: Tensor | None = None
        with routed.observed(observe), routed.given(prompt=batch.rows.prompt, domain=batch.choice, active=active):
            if self.losses.needs_model or isinstance(self.gate, SiteGate):
                logits = routed.model(input_ids=batch.rows.ids, attention_mask=attention, use_cache=False).logits
            else:
                seen.append(routed.decide(batch.rows.ids, attention))
        if alone:
            own = F.one_hot(batch.choice, self.gate.shape.num_choices).bool()
            own[:, 0] = True
            seen = [scores.masked_fill(~own[:, None], float("-inf")) for scores in seen]
        return seen, logits

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
        optimizer, schedule = self.settings.optimizer(self.gate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _counted(
    scores: Float[Tensor, "batch decision *site choice"], batch: GateBatch
) -> tuple[Float[Tensor, "counted choice"], Int[Tensor, " counted"]]:
    """Decisions about rows, or about their attended tokens, with the true choice of each.

    A decision that sites share counts once; one that is taken at every token counts at the attended ones.
    """
    heard = _heard(scores.shape[1], batch.rows.attention)
    choice = batch.choice[:, None].expand(heard.shape)[heard]
    found = scores[heard].flatten(1, -2) if scores.dim() == 4 else scores[heard][:, None]
    return found.flatten(0, 1), choice.repeat_interleave(found.shape[1])


def _joined(counted: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    scores, choices = zip(*counted, strict=True)
    return torch.cat(scores), torch.cat(choices)


def _places(scores: Float[Tensor, "batch decision *site choice"]) -> Sequence[Float[Tensor, "batch decision choice"]]:
    return scores.unbind(dim=2) if scores.dim() == 4 else [scores]


def _importance(scores: Float[Tensor, "batch decision choice"], batch: GateBatch) -> Float[Tensor, "batch expert"]:
    """Shares of every expert, summed over the decisions of a row that count."""
    heard = _heard(scores.shape[1], batch.rows.attention)
    return shares(scores)[..., 1:].masked_fill(~heard[..., None], 0).sum(dim=1)


def _heard(decisions: int, attended: Bool[Tensor, "batch token"]) -> Bool[Tensor, "batch decision"]:
    """Which decisions count: those about attended tokens, or those about a row that has any."""
    return attended if decisions == attended.shape[1] else attended.any(dim=1, keepdim=True)
