"""Nearest neighbours: choose the expert of the example prompts that lie nearest (the "Retrieval" of arXiv:2402.05859)."""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.core.errors import ConfigError
from pmemx.core.gate import NEVER, ExampleGate
from pmemx.core.vote import Granularity


class NearestNeighboursGate(ExampleGate):
    """Mean cosine between the mean state of the prompt and the k nearest stored examples of each choice; k = 1: the maximum.

    PHATGOOSE's baseline embeds prompts with a sentence encoder of its own; here the base does it, at `layer`. An expert
    whose domain has several kinds of prompts needs no centroid between them, which would be near none. capacity: examples
    stored a choice, at most. Of more, a sample stays: those of the largest hash of their content, in steps of 1/1024, so
    that neither the order of the examples nor their batches matter. With fewer than k examples, all count.

    Text that needs no expert has examples like the others; where none was seen, "no expert" scores `abstain`, and None
    never takes it.
    """

    choice_rows: ClassVar[tuple[str, ...] | None] = ("examples", "hashes")

    def __init__(
        self,
        shape: BankShape,
        *,
        granularity: Granularity = "prompt",
        layer: int = 0,
        k: int = 1,
        capacity: int = 256,
        abstain: float | None = None,
    ) -> None:
        super().__init__(shape, granularity=granularity)
        if not 1 <= k <= capacity:
            raise ConfigError(f"gate.k = {k} must be at least 1 and at most gate.capacity = {capacity}; lower k")
        self.layer, self.k, self.capacity = layer, k, capacity
        self.abstain = NEVER if abstain is None else abstain
        self.register_buffer("examples", torch.zeros(shape.num_choices, capacity, shape.width))
        # 0 marks a free place, so that a new choice, whose row is zero, has no examples.
        self.register_buffer("hashes", torch.zeros(shape.num_choices, capacity, dtype=torch.long))
        keys = torch.randint(2**63 - 1, (shape.width,), generator=torch.Generator().manual_seed(0))
        self.register_buffer("keys", keys, persistent=False)

    def read(self, hidden: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token feature"]:
        """The states at unit RMS, so that no token outweighs the others by its length."""
        hidden = hidden.float()
        return hidden * torch.rsqrt(hidden.square().mean(dim=-1, keepdim=True) + 1e-6)

    @torch.no_grad()
    def see(self, pooled: Float[Tensor, "batch 1 feature"], choice: Int[Tensor, " batch"]) -> None:
        """Store examples while there is room, then those of the largest hashes."""
        examples, hashes = self.get_buffer("examples"), self.get_buffer("hashes")
        given = F.normalize(pooled[:, 0].float(), dim=-1)
        cells = (pooled[:, 0].float() * 1024).round().long()
        # Products and sums of integers wrap. The sign is dropped.
        found = ((cells * self.get_buffer("keys")).sum(dim=-1) & (2**63 - 1)).clamp_min(1)
        for number in choice.unique().tolist():
            mine = choice == number
            together = torch.cat([hashes[number], found[mine]])
            hashes[number], kept = together.topk(self.capacity)
            examples[number] = torch.cat([examples[number], given[mine]])[kept]

    def score(
        self, pooled: Float[Tensor, "batch token feature"], domain: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch token choice"]:
        """Raises ConfigError when an expert has shown no example: its score would mean nothing."""
        stored = self.get_buffer("hashes") > 0
        seen = stored[:, 0]
        unseen = [name for name, ready in zip(self.shape.experts, seen[1:].tolist(), strict=True) if not ready]
        if unseen:
            raise ConfigError(
                f"nearest neighbours has seen no example of {', '.join(unseen)}; show it prompts of every expert "
                f"(put train_gate before evaluate in the plan, or call `see`)"
            )
        cosine = F.normalize(pooled, dim=-1) @ self.get_buffer("examples").flatten(0, 1).T
        cosine = cosine.unflatten(-1, stored.shape).masked_fill(~stored, float("-inf"))
        nearest = cosine.topk(self.k, dim=-1).values
        count = stored.sum(dim=1).clamp(1, self.k)
        mean = nearest.masked_fill(nearest.isinf(), 0).sum(dim=-1) / count
        return torch.where(seen, mean, mean.new_tensor(self.abstain))
