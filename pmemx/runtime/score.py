"""Score answers by teacher forcing: one pass gives the loss, and whether greedy decoding would say the answer exactly."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pmemx.core.encoding import Encoded, collate
from pmemx.core.routing import Observation
from pmemx.runtime.attach import Routed


@dataclass(frozen=True, eq=False)
class Scored:
    """One row. nats: summed over the `tokens` answer tokens; hits: how many are the arg-max.

    log_probs: [position, vocab], kept on request as a reference for kl; kl: KL(reference || model) summed over
    positions. load: mean weight of every choice by site, no expert first; empty without experts.
    """

    nats: float
    tokens: int
    hits: int
    kl: float | None
    log_probs: Tensor | None
    load: dict[str, tuple[float, ...]]

    @property
    def exact(self) -> bool:
        """Greedy decoding says the whole answer: at each step the arg-max is the answer's token, so the prefix stays true."""
        return self.hits == self.tokens


@torch.no_grad()
def score(
    model: nn.Module,
    rows: Sequence[Encoded],
    *,
    pad: int,
    routed: Routed | None = None,
    choice: int = -1,
    reference: Sequence[Tensor] | None = None,
    keep: bool = False,
    tokens_per_batch: int = 8192,
) -> list[Scored]:
    """Scores in the order of rows.

    routed: the attached experts, whose gate is told where the prompts end and the true choice. reference:
    log-probabilities of the base by row, to measure the divergence from it. keep: return log-probabilities, to be such a
    reference.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    results: dict[int, Scored] = {}
    for chosen in _chunks(order, rows, tokens_per_batch):
        batch = collate([rows[i] for i in chosen], pad).to(device)
        loads: dict[str, Tensor] = {}
        if routed is None:
            out = model(input_ids=batch.ids, attention_mask=batch.attention.long(), use_cache=False)
        else:
            domain = torch.full((len(chosen),), choice, device=device)
            with routed.observed(_Load(loads)), routed.given(prompt=batch.prompt, domain=domain):
                out = model(input_ids=batch.ids, attention_mask=batch.attention.long(), use_cache=False)
        log_probs = F.log_softmax(batch.at_answers(out.logits).float(), dim=-1)
        nats = -log_probs.gather(1, batch.labels[:, None])[:, 0]
        hits = log_probs.argmax(dim=1) == batch.labels
        counts = batch.answer.sum(dim=1).tolist()
        for place, (i, row_nats, row_hits, row) in enumerate(
            zip(chosen, nats.split(counts), hits.split(counts), log_probs.split(counts), strict=True)
        ):
            drift = None
            if reference is not None:
                drift = float(F.kl_div(row, reference[i].to(device), log_target=True, reduction="sum"))
            results[i] = Scored(
                nats=float(row_nats.sum()),
                tokens=len(row_nats),
                hits=int(row_hits.sum()),
                kl=drift,
                log_probs=row.cpu().clone() if keep else None,
                load={site: tuple(load[place].tolist()) for site, load in loads.items()},
            )
    return [results[i] for i in range(len(rows))]


class _Load:
    """Observes the routing of one pass: mean weight by row over prompt tokens."""

    def __init__(self, loads: dict[str, Tensor]) -> None:
        self.loads = loads

    def __call__(self, seen: Observation) -> None:
        dense = seen.routing.dense().float().expand(seen.prompt.shape[0], -1, -1)
        if dense.shape[1] > 1:
            prompt = seen.prompt[..., None]
            dense = (dense * prompt).sum(dim=1) / prompt.sum(dim=1).clamp_min(1)
        else:
            dense = dense[:, 0]
        nothing = (1 - dense.sum(dim=1, keepdim=True)).clamp_min(0)
        self.loads[seen.site] = torch.cat([nothing, dense], dim=1).cpu()


def _chunks(order: list[int], rows: Sequence[Encoded], tokens: int) -> list[list[int]]:
    chunks: list[list[int]] = [[]]
    for i in order:
        if chunks[-1] and (len(chunks[-1]) + 1) * len(rows[i].ids) > tokens:
            chunks.append([])
        chunks[-1].append(i)
    return chunks if order else []
