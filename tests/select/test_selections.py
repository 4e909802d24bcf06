"""Each selection by hand, and the laws that join them; what holds for all of them is in the contract."""

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations

import pytest
import torch

from pmemx.core.errors import ConfigError
from pmemx.select.sample import Sample
from pmemx.select.softmax import Softmax
from pmemx.select.threshold import Threshold
from pmemx.select.top_k import TopK
from pmemx.select.top_p import TopP

SHARES = (0.1, 0.2, 0.4, 0.3)
HAND = torch.tensor(SHARES).log()[None, None]


def dense(select, scores: torch.Tensor = HAND) -> list[float]:
    return select(scores).dense()[0, 0].tolist()


def random_scores(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2


def test_softmax_by_hand():
    assert dense(Softmax()) == pytest.approx([0.2, 0.4, 0.3])
    squares = [share**2 for share in SHARES]
    assert dense(Softmax(temperature=0.5)) == pytest.approx([s / sum(squares) for s in squares[1:]])


def test_top_k_by_hand():
    assert dense(TopK()) == [0.0, 1.0, 0.0]
    assert dense(TopK(k=2)) == pytest.approx([0.0, 4 / 7, 3 / 7])
    assert dense(TopK(k=2, renormalise=False)) == pytest.approx([0.0, 0.4, 0.3])


def test_no_expert_competes_for_a_place_among_the_k():
    scores = torch.tensor([0.5, 0.1, 0.3, 0.1]).log()[None, None]
    assert dense(TopK(), scores) == [0.0, 0.0, 0.0]
    assert dense(TopK(k=2), scores) == pytest.approx([0.0, 0.375, 0.0])
    assert TopK(k=2)(scores).weight[0, 0].tolist() == pytest.approx([0.0, 0.375])


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_top_k_of_a_softmax_renormalised_is_a_softmax_over_the_top_k(k):
    scores = random_scores(3, 4, 9)
    kept = scores >= scores.topk(k, dim=-1).values[..., -1:]
    assert torch.allclose(
        TopK(k=k)(scores).dense(), scores.masked_fill(~kept, -math.inf).softmax(dim=-1)[..., 1:], atol=1e-7
    )


def test_top_p_by_hand():
    assert dense(TopP(p=0.3)) == [0.0, 1.0, 0.0]
    assert dense(TopP(p=0.6)) == pytest.approx([0.0, 4 / 7, 3 / 7])
    assert dense(TopP(p=0.6, renormalise=False)) == pytest.approx([0.0, 0.4, 0.3])
    assert dense(TopP(p=0.8)) == pytest.approx([2 / 9, 4 / 9, 3 / 9])


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_top_p_takes_the_smallest_set_that_holds_p(p):
    scores = random_scores(5, 7, 9)
    share = scores.softmax(dim=-1)
    routing = TopP(p=p, renormalise=False)(scores)
    best = share.sort(dim=-1, descending=True).values
    for row in range(5):
        for token in range(7):
            size = next(n for n in range(1, 10) if best[row, token, :n].sum() >= p)
            none = share[row, token, 0] if share[row, token, 0] >= best[row, token, size - 1] else 0.0
            assert routing.weight[row, token].sum() + none == pytest.approx(float(best[row, token, :size].sum()))


def test_top_p_of_one_is_a_softmax():
    scores = random_scores(3, 4, 9)
    assert torch.allclose(TopP(p=1.0)(scores).dense(), Softmax()(scores).dense(), atol=1e-6)


def test_threshold_by_hand():
    assert dense(Threshold(threshold=0.25)) == pytest.approx([0.0, 0.4, 0.3])
    assert dense(Threshold(threshold=0.25, renormalise=True)) == pytest.approx([0.0, 4 / 7, 3 / 7])
    assert dense(Threshold(threshold=0.05, renormalise=True)) == pytest.approx([0.2, 0.4, 0.3])
    assert dense(Threshold(threshold=0.5)) == dense(Threshold(threshold=0.5, renormalise=True)) == [0.0, 0.0, 0.0]


def test_a_share_at_the_threshold_passes():
    assert dense(Threshold(threshold=0.5), torch.zeros(1, 1, 2)) == [0.5]


def test_a_threshold_of_zero_is_a_softmax():
    scores = random_scores(3, 4, 9)
    assert torch.equal(Threshold(threshold=0.0)(scores).dense(), Softmax()(scores).dense())


def frequencies(k: int, routings) -> dict[tuple[int, ...], float]:
    """How often each sequence of experts was drawn; -1 stands for no expert, whose weight is 0."""
    counts: dict[tuple[int, ...], int] = {}
    total = 0
    for routing in routings:
        drawn = torch.where(routing.weight > 0, routing.index, -1).reshape(-1, k)
        for row in drawn.tolist():
            counts[tuple(row)] = counts.get(tuple(row), 0) + 1
            total += 1
    return {drawn: count / total for drawn, count in counts.items()}


def plackett_luce(share: tuple[float, ...], k: int) -> dict[tuple[int, ...], float]:
    """Probability of drawing each sequence of k choices without replacement."""
    found = {}
    for drawn in permutations(range(len(share)), k):
        left, probability = 1.0, 1.0
        for choice in drawn:
            probability *= share[choice] / left
            left -= share[choice]
        found[tuple(choice - 1 for choice in drawn)] = probability
    return found


@pytest.mark.parametrize("k", [1, 2])
def test_draws_over_seeds_follow_the_shares(k):
    seen = frequencies(k, (Sample(k=k, seed=seed)(HAND) for seed in range(2000)))
    for drawn, probability in plackett_luce(SHARES, k).items():
        assert seen.get(drawn, 0.0) == pytest.approx(probability, abs=5 * math.sqrt(probability / 2000))


def test_draws_over_decisions_of_one_seed_follow_the_shares():
    # Nearly the same shares everywhere, so that the expected rate is known, and yet never the same cells.
    jitter = torch.rand(200, 100, 4, generator=torch.Generator().manual_seed(3)) - 0.5
    scores = HAND + jitter
    expected = scores.softmax(dim=-1)[..., 1:].mean(dim=(0, 1))
    drawn = Sample(seed=1)(scores).dense().mean(dim=(0, 1))
    assert torch.allclose(drawn, expected, atol=5 * 0.5 / math.sqrt(20_000))


def test_the_temperature_flattens_draws():
    scores = torch.tensor([0.0, 3.0])[None, None]
    hot = sum(dense(Sample(temperature=100.0, seed=seed), scores)[0] for seed in range(400)) / 400
    cold = sum(dense(Sample(temperature=0.2, seed=seed), scores)[0] for seed in range(400)) / 400
    assert hot == pytest.approx(0.5, abs=0.13) and cold == 1.0


def test_a_draw_has_the_weights_of_top_k():
    scores = random_scores(4, 6, 9)
    drawn = Sample(k=8, renormalise=False)(scores)
    share = scores.softmax(dim=-1)[..., 1:]
    assert torch.allclose(drawn.dense(), share * (drawn.dense() > 0))
    assert Sample(k=8)(scores).weight.sum(dim=-1).max() <= 1 + 1e-6


def test_another_seed_draws_anew():
    scores = random_scores(8, 16, 9)
    assert not torch.equal(Sample(seed=0)(scores).dense(), Sample(seed=1)(scores).dense())


def test_a_decision_falls_alike_in_another_place_of_another_batch_and_after_rounding():
    select, scores = Sample(k=2, seed=5), random_scores(8, 16, 9)
    whole = select(scores).dense()
    alone = torch.stack([select(scores[b : b + 1, t : t + 1]).dense()[0, 0] for b in range(8) for t in range(16)])
    assert torch.equal(alone.view_as(whole), whole)
    rounded = select(scores * (1 + 2e-7)).dense()
    assert (rounded - whole).abs().amax(dim=-1).gt(1e-5).float().mean() < 0.02


def test_threads_draw_what_one_thread_draws():
    select = Sample(k=2, seed=9)
    batches = [random_scores(4, 8, 9, seed=seed) for seed in range(32)]
    alone = [select(scores).dense() for scores in batches]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda scores: select(scores).dense(), batches))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    Sample(k=2)(HAND)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "select",
    [
        Softmax(),
        TopK(k=2),
        TopK(renormalise=False),
        TopP(),
        Threshold(threshold=0.15),
        Sample(k=2),
        Sample(renormalise=False),
    ],
    ids=repr,
)
def test_gradients_reach_the_scores(select):
    scores = (HAND + torch.tensor([-2.0, 0.0, 0.0, 0.0])).requires_grad_()
    (select(scores).dense() * torch.tensor([1.0, 2.0, 4.0])).sum().backward()
    assert scores.grad is not None and scores.grad.abs().sum() > 1e-3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TopK(k=0), "select.k = 0 chooses nothing"),
        (lambda: Sample(k=-1), "select.k = -1 chooses nothing"),
        (lambda: TopP(p=0.0), r"select.p = 0.0 is not a share in \(0, 1\]"),
        (lambda: TopP(p=1.1), r"select.p = 1.1 is not a share in \(0, 1\]"),
        (lambda: Threshold(threshold=1.0), r"select.threshold = 1.0 is not a share in \[0, 1\)"),
        (lambda: Threshold(threshold=-0.1), r"select.threshold = -0.1 is not a share in \[0, 1\)"),
        *(
            (lambda kind=kind: kind(temperature=0.0), "temperature = 0.0 must be positive")
            for kind in (Softmax, TopK, TopP, Threshold, Sample)
        ),
        (lambda: TopK(k=4)(HAND), "select.k = 4 is larger than the 3 experts"),
        (lambda: Sample(k=4)(HAND), "select.k = 4 is larger than the 3 experts"),
    ],
)
def test_what_cannot_be_chosen_is_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
