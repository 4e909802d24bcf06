"""The search for the few numbers of a gate, without gradients: LoraHub's (arXiv:2307.13269)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch.nn import functional as F

from pmemx.core.encoding import Batch, Encoded, collate
from pmemx.core.errors import ConfigError
from pmemx.core.gate import SearchedGate
from pmemx.core.stage import Advance
from pmemx.lit.gate_module import Source
from pmemx.runtime.attach import Routed


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How a search looks for numbers in [-bound, bound].

    evaluations: passes over the examples at most; one a number and some more is what a search can work with, so a bank of
    more than 30 experts wants more than the paper's 40, which were for 20 experts. per_domain: examples of each domain.
    penalty: of the mean absolute number, in nats a token. step: how far the first looks go.
    """

    evaluations: int = 40
    per_domain: int = 5
    penalty: float = 0.05
    bound: float = 1.5
    step: float = 0.75

    def __post_init__(self) -> None:
        for name in ("evaluations", "per_domain"):
            if getattr(self, name) < 1:
                raise ConfigError(f"search.{name} = {getattr(self, name)} must be at least 1")
        if self.penalty < 0:
            raise ConfigError(f"search.penalty = {self.penalty} would reward large numbers; it must not be negative")
        if not 0 < self.step <= self.bound:
            raise ConfigError(
                f"search.step = {self.step} must be positive and at most search.bound = {self.bound}; half the bound is usual"
            )


def few_examples(sources: Sequence[Source], per_domain: int, generator: torch.Generator) -> list[tuple[Encoded, int]]:
    """Rows to be learnt, with their true choices: up to per_domain different ones of every source that is in the batches."""
    drawn: list[tuple[Encoded, int]] = []
    for source in sources:
        if source.per_batch and source.speaks:
            order = torch.randperm(len(source.rows), generator=generator)[:per_domain].tolist()
            drawn += [(source.rows[i], source.choice) for i in order]
    return drawn


@torch.no_grad()
def search(
    gate: SearchedGate,
    routed: Routed,
    examples: Sequence[tuple[Encoded, int]],
    *,
    pad: int,
    batch_size: int,
    settings: SearchSettings,
    advance: Advance,
) -> float:
    """Leave in the gate the best numbers that were tried, and return their loss; they are never worse than at the start.

    The loss is the mean cross-entropy of the answers, in nats a token, plus penalty * mean |number|. The paper's optimiser
    (NGOpt of nevergrad) cannot be installed beside current libraries. COBYLA, a trust region on a linear model
    (doi:10.1007/978-94-015-8330-5_4), came closest to planted weights of 8 to 32 experts within 40 evaluations; scipy's
    COBYQA is as good up to 11 experts, but must look twice a number before it moves. It draws nothing, so the same examples
    give the same numbers.
    """
    device = next(routed.model.parameters()).device
    ordered = sorted(examples, key=lambda example: len(example[0].ids))
    batches: list[tuple[Batch, torch.Tensor]] = []
    for start in range(0, len(ordered), batch_size):
        rows, choices = zip(*ordered[start : start + batch_size], strict=True)
        batches.append((collate(rows, pad).to(device), torch.tensor(choices, device=device)))
    numbers = gate.numbers()
    tried: list[tuple[float, np.ndarray]] = []

    def loss(wanted: np.ndarray) -> float:
        if len(tried) == settings.evaluations:
            # COBYLA asks at least two times more than there are numbers, whatever it was told.
            return tried[0][0]
        inside = wanted.clip(-settings.bound, settings.bound)
        numbers.copy_(torch.from_numpy(inside))
        value = cross_entropy(routed, batches) + settings.penalty * float(np.abs(inside).mean())
        tried.append((value, inside))
        advance(1, f"loss {value:.3f}")
        return value

    minimize(
        loss,
        numbers.double().cpu().numpy(),
        method="COBYLA",
        bounds=[(-settings.bound, settings.bound)] * len(numbers),
        options={"rhobeg": settings.step, "maxiter": max(settings.evaluations, len(numbers) + 2)},
    )
    best, found = min(tried, key=lambda one: one[0])
    numbers.copy_(torch.from_numpy(found))
    return best


def cross_entropy(routed: Routed, batches: Sequence[tuple[Batch, torch.Tensor]]) -> float:
    """Nats a token of the answers of rows, given with their true choices."""
    nats, tokens = 0.0, 0
    for batch, choice in batches:
        with routed.given(prompt=batch.prompt, domain=choice):
            out = routed.model(input_ids=batch.ids, attention_mask=batch.attention.long(), use_cache=False)
        said = batch.at_answers(out.logits).float()
        nats += float(F.cross_entropy(said, batch.labels, reduction="sum"))
        tokens += len(batch.labels)
    return nats / tokens
