"""Tracking: every expert brings a detector of its own, and a belief that forgets follows the text from one to another.

A design of pmemx for banks that grow; experiments/own_gate tells what was tried before it.
"""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.core.errors import ConfigError
from pmemx.core.gate import DetectorGate
from pmemx.core.vote import Granularity
from pmemx.gate.fixed_share import FixedShare

SMOOTHING = 0.1
"""What is added to every count of naive Bayes: less than one, since most phrases are rare."""


class TrackingGate(DetectorGate):
    """A token's evidence for an expert is the sum of that expert's weights for the phrases that end with the token.

    Phrases are one to `window` neighbouring tokens, told apart by the signs of `bits` random projections of their embeddings
    and put into `buckets` by hashing, an equal part for each length, so that a gate needs no vocabulary and a phrase costs a
    look into a table. The weights
    of an expert are a logistic regression of its own examples against those of no expert, without a constant: convex, done
    in a fraction of a second, blind to all other experts. Its penalty, `l2` over the number of examples of no expert (a
    prior of fixed strength), draws the weights not to zero but to `likelihood` times those of naive Bayes (after NBSVM, Wang
    and Manning 2012), which say how much likelier a phrase is in the expert's texts: where telling the expert's examples
    from no expert's leaves a weight open, it is that of a likelihood, and the evidence of experts that never met in training
    compares. One that joins later changes no number of the others.

    With `novelty` above 0, a phrase that none of the expert's examples holds speaks against it, whatever domain it is of: by
    `novelty` times the logarithm of how often a phrase of an expert's example is in no other example of it (Good and Turing's estimate of what
    is still unseen, doi:10.1093/biomet/40.3-4.237) over how often a phrase of no expert's text is in none of them. So a text of
    another kind than all examples goes to no expert, though nothing like it was among the examples of no expert. This takes
    prompts to be worded like the examples: what is asked in other words than all of them goes to no expert as well.

    What tokens say becomes a decision by FixedShare (hold, turn, none). Examples of no expert that look like an expert's (the same
    questions about something it does not know) are what teaches a detector to say "none".
    """

    choice_rows: ClassVar[tuple[str, ...] | None] = ("evidence", "learnt")
    example_rows: ClassVar[tuple[str, ...]] = ("background", "background_lengths")

    def __init__(
        self,
        shape: BankShape,
        *,
        granularity: Granularity = "turn",
        window: int = 2,
        bits: int = 24,
        buckets: int = 32768,
        l2: float = 0.02,
        likelihood: float = 0.1,
        novelty: float = 0.0,
        hold: float = 64.0,
        turn: float = 0.9,
        none: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__(shape, granularity=granularity)
        for name, value, most in (("window", window, 8), ("bits", bits, 48), ("buckets", buckets, 2**30)):
            if not 1 <= value <= most:
                raise ConfigError(f"gate.{name} = {value} is outside 1..{most}; choose a value inside")
        if not l2 > 0:
            raise ConfigError(
                f"gate.l2 = {l2} must be positive: without a penalty the weights of a detector have no bound"
            )
        if not likelihood >= 0:
            raise ConfigError(
                f"gate.likelihood = {likelihood} must not be negative; 0 draws weights to zero, 1 to naive Bayes"
            )
        if not novelty >= 0:
            raise ConfigError(
                f"gate.novelty = {novelty} must not be negative; 0 lets phrases that were never seen be silent"
            )
        if buckets < window:
            raise ConfigError(
                f"gate.buckets = {buckets} leaves none for some of {window} lengths; give each at least one"
            )
        self.window, self.reach, self.buckets, self.room = window, window - 1, buckets, buckets // window
        self.l2, self.likelihood, self.novelty = l2, likelihood, novelty
        self.pool = FixedShare(hold=hold, turn=turn, none=none)
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("directions", torch.randn(shape.width, bits, generator=generator))
        self.register_buffer("powers", 2 ** torch.arange(bits), persistent=False)
        self.register_buffer("factors", torch.randint(2**62, (window + 1,), generator=generator) | 1)
        # In the file, so that evidence of another layout is refused.
        self.register_buffer("buckets_by_length", torch.full((window,), self.room))
        self.register_buffer("evidence", torch.zeros(shape.num_choices, buckets))
        self.register_buffer("learnt", torch.zeros(shape.num_choices, dtype=torch.bool))
        self.register_buffer("background", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("background_lengths", torch.zeros(0, dtype=torch.int32))
        self._noted: dict[int, list[tuple[int, ...]]] = {}

    def phrases(self, hidden: Float[Tensor, "batch seen width"]) -> Int[Tensor, "batch token length"]:
        """Buckets of the phrases that end with each token, the shortest first; what stands before the text is a token, too."""
        token = ((hidden.float() @ self.get_buffer("directions") > 0) * self.get_buffer("powers")).sum(dim=-1)
        factors, length = self.get_buffer("factors"), hidden.shape[1] - self.reach
        found, code = [], torch.zeros_like(token[:, :length])
        for back in range(self.window):
            start = self.reach - back
            code = code + (token[:, start : start + length] + 1) * factors[back]
            found.append(_hashed(code, factors[-1]) % self.room + back * self.room)
        return torch.stack(found, dim=-1)

    def read(self, hidden: Float[Tensor, "batch seen width"]) -> Float[Tensor, "batch token feature"]:
        """Log-likelihood ratios of every choice; that of no expert is zero."""
        phrases = self.phrases(hidden)
        weights = self.get_buffer("evidence")[:, phrases.flatten()]
        return weights.T.unflatten(0, phrases.shape).sum(dim=2)

    def score(
        self, pooled: Float[Tensor, "batch token feature"], domain: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch token choice"]:
        """Log-probabilities. Raises ConfigError when an expert has no detector: its score would mean nothing."""
        ready = self.get_buffer("learnt")[1:].tolist()
        if not all(ready):
            unseen = [name for name, known in zip(self.shape.experts, ready, strict=True) if not known]
            raise ConfigError(
                f"tracking has no detector of {', '.join(unseen)}; show it prompts of every expert and of no expert "
                f"(put train_gate before evaluate in the plan, or call `note` and `fit`)"
            )
        return pooled

    @torch.no_grad()
    def note(
        self,
        hidden: Float[Tensor, "batch seen width"],
        inside: Bool[Tensor, "batch token"],
        choice: Int[Tensor, " batch"],
    ) -> None:
        """See DetectorGate."""
        for row, mask, own in zip(self.phrases(hidden), inside, choice.tolist(), strict=True):
            self._noted.setdefault(own, []).append(tuple(row[mask].flatten().tolist()))

    @torch.no_grad()
    def fit(self) -> None:
        """See DetectorGate. Raises ConfigError where no example of no expert was ever noted."""
        if noted := self._noted.pop(0, None):
            # Sorted, so that the order of examples is lost.
            self._keep(sorted([*self._kept(), *noted]))
        background = self._kept()
        if not background:
            raise ConfigError(
                "a detector learns an expert against no expert, of which there is no example; note some with choice 0 "
                "(stage.train_gate.general above 0)"
            )
        for choice, examples in sorted(self._noted.items()):
            # A serving thread may be in inference mode, in which nothing can be learnt.
            with torch.inference_mode(False):
                centre = self.likelihood * _naive_bayes(examples, background, self.buckets)
                found = _detector(sorted(examples), background, centre, self.l2 / len(background))
                found += self.novelty * _unseen(examples, background, self.buckets, self.room)
            self.get_buffer("evidence")[choice] = found
            self.get_buffer("learnt")[choice] = True
        self._noted.clear()

    def _kept(self) -> list[tuple[int, ...]]:
        lengths = self.get_buffer("background_lengths").tolist()
        return [tuple(row.tolist()) for row in self.get_buffer("background").split(lengths)]

    def _keep(self, rows: list[tuple[int, ...]]) -> None:
        device = self.get_buffer("evidence").device
        flat = [bucket for row in rows for bucket in row]
        self.background = torch.tensor(flat, dtype=torch.int32, device=device)
        self.background_lengths = torch.tensor([len(row) for row in rows], dtype=torch.int32, device=device)


def _hashed(code: Int[Tensor, "*shape"], factor: Int[Tensor, ""]) -> Int[Tensor, "*shape"]:
    # In integers that wrap; & clears the sign that >> copies.
    code = (code ^ ((code >> 31) & 0x1FFFFFFFF)) * factor
    return (code >> 20) & 0x7FFFFFFFFFF


def _naive_bayes(own: list[tuple[int, ...]], others: list[tuple[int, ...]], buckets: int) -> Float[Tensor, " bucket"]:
    """Log-ratio of a phrase's frequency in both sets, in nats; 0 for one that is in neither, of which nothing is known."""
    counts = [
        torch.tensor([b for row in rows for b in row], dtype=torch.long).bincount(minlength=buckets).double()
        for rows in (own, others)
    ]
    smooth = [torch.log((count + SMOOTHING) / (count.sum() + SMOOTHING * buckets)) for count in counts]
    return torch.where(counts[0] + counts[1] > 0, smooth[0] - smooth[1], 0.0)


def _unseen(
    own: list[tuple[int, ...]], others: list[tuple[int, ...]], buckets: int, room: int
) -> Float[Tensor, " bucket"]:
    """Evidence of a phrase that no example of `own` holds, in nats and never above 0; 0 for the phrases that one holds.

    room: how many neighbouring buckets phrases of one length have. Each length has its own rates: long phrases are mostly new.
    """
    holding = torch.tensor([b for row in own for b in set(row)], dtype=torch.long).bincount(minlength=buckets)
    rates = []
    # Leave one out: a phrase of an example is new to the others if that example alone holds it.
    for rows, most in ((own, 1), (others, 0)):
        phrases = torch.tensor([b for row in rows for b in row], dtype=torch.long)
        new = (phrases // room)[holding[phrases] <= most].bincount(minlength=buckets // room)
        rates.append((new + 1) / ((phrases // room).bincount(minlength=buckets // room) + 2))
    evidence = torch.log(rates[0] / rates[1]).clamp_max(0)
    return torch.where(
        holding == 0, evidence[torch.arange(buckets).div(room, rounding_mode="floor").clamp_max(len(evidence) - 1)], 0.0
    )


def _detector(
    own: list[tuple[int, ...]],
    others: list[tuple[int, ...]],
    centre: Float[Tensor, " bucket"],
    l2: float,
) -> Float[Tensor, " bucket"]:
    """Weights of a logistic regression on counts of phrases, both classes of equal weight in all, in double precision.

    centre: the weights that no penalty is asked for; those of phrases that are in no example stay there.
    """
    rows = [*own, *others]
    number = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(row) for row in rows]))
    used, column = torch.tensor([bucket for row in rows for bucket in row]).unique(return_inverse=True)
    truth = torch.tensor([1.0] * len(own) + [0.0] * len(others), dtype=torch.float64)
    share = torch.where(truth > 0, 0.5 / len(own), 0.5 / len(others))
    moved = torch.zeros(len(used), dtype=torch.float64, requires_grad=True)
    # To the optimum: a smaller step in the loss than 1e-9 may still be one of 1e-3 in a weight.
    optimizer = torch.optim.LBFGS(
        [moved], max_iter=1000, line_search_fn="strong_wolfe", tolerance_grad=1e-9, tolerance_change=1e-14
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        scores = moved.new_zeros(len(rows)).index_add(0, number, (centre[used] + moved)[column])
        nats = F.binary_cross_entropy_with_logits(scores, truth, reduction="none")
        total = (share * nats).sum() + l2 * moved.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(loss)
    found = centre.clone()
    found[used] += moved.detach()
    return found.float()
