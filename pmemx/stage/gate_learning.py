"""How gates learn that learn without gradients: they are shown examples, once."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pmemx.core.encoding import Batch, Encoded, collate
from pmemx.core.gate import DetectorGate, ExampleGate, SiteExampleGate
from pmemx.core.stage import Advance
from pmemx.lit.gate_module import Source
from pmemx.runtime.attach import Routed

Prompt = tuple[Encoded, int]


def prompts_of(sources: Sequence[Source], *, unanswerable: bool = False) -> list[Prompt]:
    """What a gate is shown: the prompts of the rows that have one, with their true choices.

    unanswerable: prompts that nobody can answer, too. They resemble those of the domains: they teach a detector what to
    keep off, and would only blur what sets general text apart for a gate that remembers places.
    """
    return [
        (Encoded(row.ids[: row.prompt_length], row.prompt_length), source.choice)
        for source in sources
        if source.per_batch and (unanswerable or not source.resembles)
        for row in source.rows
        if row.prompt_length
    ]


@torch.no_grad()
def show_examples(
    gate: ExampleGate,
    routed: Routed,
    prompts: Sequence[Prompt],
    *,
    pad: int,
    batch_size: int,
    advance: Advance,
) -> float:
    """Let a gate see every prompt with its true choice; returns the share that it then gets right.

    Prompts are shown whole, whatever the gate decides about when it serves.
    """
    seen: list[tuple[Tensor, Tensor]] = []
    for batch, choice in _batches(routed, prompts, pad, batch_size):
        with routed.given(prompt=batch.prompt):
            pooled = routed.pooled(batch.ids, batch.attention.long())
        gate.see(pooled, choice)
        seen.append((pooled, choice))
        advance(len(choice), "examples")
    right = [gate.score(pooled, None).flatten(1, -2).mean(dim=1).argmax(dim=1) == choice for pooled, choice in seen]
    return float(torch.cat(right).float().mean())


@torch.no_grad()
def show_sites(
    gate: SiteExampleGate,
    routed: Routed,
    prompts: Sequence[Prompt],
    *,
    pad: int,
    batch_size: int,
    advance: Advance,
) -> float:
    """The same for a gate that learns at every site; returns the share that the sites' summed scores then get right."""
    for batch, choice in _batches(routed, prompts, pad, batch_size):
        with routed.given(prompt=batch.prompt):
            pooled = routed.pooled_at_sites(batch.ids, batch.attention.long())
        for site, said in pooled.items():
            gate.see(site, said, choice)
        advance(len(choice), "examples")
    right = []
    for batch, choice in _batches(routed, prompts[:: max(1, len(prompts) // 256)], pad, batch_size):
        with routed.given(prompt=batch.prompt):
            pooled = routed.pooled_at_sites(batch.ids, batch.attention.long())
        total = torch.stack([gate.score(site, said)[:, 0] for site, said in pooled.items()]).sum(dim=0)
        right.append(total.argmax(dim=1) == choice)
    return float(torch.cat(right).float().mean())


@torch.no_grad()
def note_examples(
    gate: DetectorGate,
    routed: Routed,
    prompts: Sequence[Prompt],
    *,
    pad: int,
    batch_size: int,
    advance: Advance,
) -> float:
    """Let a gate note every prompt with its true choice, then learn every expert; returns the share that it gets right."""
    for batch, choice in _batches(routed, prompts, pad, batch_size):
        with routed.given(prompt=batch.prompt):
            hidden, inside = routed.read(batch.ids, batch.attention.long())
        gate.note(hidden, inside, choice)
        advance(len(choice), "examples")
    gate.fit()
    right = []
    for batch, choice in _batches(routed, prompts[:: max(1, len(prompts) // 1024)], pad, batch_size):
        with routed.given(prompt=batch.prompt):
            pooled = routed.pooled(batch.ids, batch.attention.long())
        right.append(gate.score(pooled, None)[:, 0].argmax(dim=1) == choice)
    return float(torch.cat(right).float().mean())


def _batches(routed: Routed, prompts: Sequence[Prompt], pad: int, batch_size: int) -> Iterator[tuple[Batch, Tensor]]:
    """Prompts of like length together."""
    ordered = sorted(prompts, key=lambda prompt: prompt[0].prompt_length)
    device = next(routed.model.parameters()).device
    for start in range(0, len(ordered), batch_size):
        rows, choices = zip(*ordered[start : start + batch_size], strict=True)
        yield collate(rows, pad).to(device), torch.tensor(choices, device=device)
