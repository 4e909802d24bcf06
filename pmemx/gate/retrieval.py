"""Retrieval: choose the expert whose example prompts lie nearest, by the base model's own states (after arXiv:2402.09997)."""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.core.errors import ConfigError
from pmemx.core.gate import NEVER, ExampleGate
from pmemx.core.vote import Granularity


class RetrievalGate(ExampleGate):
    """Cosine between the mean state of the prompt and the centroid of each expert's example prompts.

    LoraRetriever embeds prompts with a model of its own; here the base does it, so nothing else is loaded and nothing is
    trained. layer: whose states are averaged. centre: take away the mean of the centroids first, which all prompts share
    and which otherwise makes every cosine large (arXiv:1702.01417). Text that needs no expert has a centroid like the
    others; where no such example was seen, "no expert" scores `abstain`, and None never takes it.
    """

    choice_rows: ClassVar[tuple[str, ...] | None] = ("total", "count")

    def __init__(
        self,
        shape: BankShape,
        *,
        granularity: Granularity = "prompt",
        layer: int = 0,
        centre: bool = True,
        abstain: float | None = None,
    ) -> None:
        super().__init__(shape, granularity=granularity)
        self.layer, self.centre = layer, centre
        self.abstain = NEVER if abstain is None else abstain
        # In double precision, so that the order of the examples is lost in rounding.
        self.register_buffer("total", torch.zeros(shape.num_choices, shape.width, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(shape.num_choices, dtype=torch.float64))

    def read(self, hidden: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token feature"]:
        """The states at unit RMS, so that no token outweighs the others by its length."""
        hidden = hidden.float()
        return hidden * torch.rsqrt(hidden.square().mean(dim=-1, keepdim=True) + 1e-6)

    @torch.no_grad()
    def see(self, pooled: Float[Tensor, "batch 1 feature"], choice: Int[Tensor, " batch"]) -> None:
        """Add to the sums behind the centroids."""
        self.get_buffer("total").index_add_(0, choice, pooled[:, 0].double())
        self.get_buffer("count").index_add_(0, choice, torch.ones_like(choice, dtype=torch.float64))

    def score(
        self, pooled: Float[Tensor, "batch token feature"], domain: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch token choice"]:
        """Raises ConfigError when an expert has shown no example: its score would mean nothing."""
        return self.score_among(pooled, domain, None)

    def score_among(
        self,
        pooled: Float[Tensor, "batch token feature"],
        domain: Int[Tensor, " batch"] | None,
        barred: Bool[Tensor, "rows choice"] | None,
    ) -> Float[Tensor, "batch token choice"]:
        """See ContextGate: the centroid of a barred expert has no part in the mean that is taken away."""
        count = self.get_buffer("count")
        seen = count > 0
        unseen = [name for name, ready in zip(self.shape.experts, seen[1:].tolist(), strict=True) if not ready]
        if unseen:
            raise ConfigError(
                f"retrieval has seen no example of {', '.join(unseen)}; show it prompts of every expert "
                f"(put train_gate before evaluate in the plan, or call `see`)"
            )
        centroid = (self.get_buffer("total") / count.clamp_min(1)[:, None]).float()
        centroid = centroid.expand(1 if barred is None else len(barred), -1, -1)
        if self.centre:
            here = (seen[None] if barred is None else seen & ~barred).to(centroid.dtype)
            # Of a single centroid nothing would be left.
            several = here.sum(dim=1, keepdim=True) > 1
            shared = torch.where(several, here / here.sum(dim=1, keepdim=True).clamp_min(1), 0)[:, None] @ centroid
            pooled, centroid = pooled - shared, centroid - shared
        cosine = F.normalize(pooled, dim=-1) @ F.normalize(centroid, dim=-1).mT
        return torch.where(seen, cosine, cosine.new_tensor(self.abstain))
