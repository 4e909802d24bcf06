"""Fixed share is the forward recursion of a hidden Markov model, in one pass and in pieces, and never certain for good."""

import math

import pytest
import torch
from torch import Tensor

from pmemx.core.errors import ConfigError
from pmemx.core.vote import Tally
from pmemx.gate.fixed_share import FixedShare

POOL = FixedShare(hold=5.0, turn=0.8, none=0.3)
CHOICES, TOKENS = 9, 24


def ratios(size: float = 2.0, rows: int = 3, tokens: int = TOKENS) -> Tensor:
    """Of eight experts against none, whose own is zero; every fourth token is silent."""
    said = torch.randn(rows, tokens, CHOICES, generator=torch.Generator().manual_seed(0)) * size
    said[..., 0] = 0
    said[:, ::4] = 0
    return said


def everywhere(said: Tensor) -> Tensor:
    return torch.ones(said.shape[:2], dtype=torch.bool)


def heard(said: Tensor, inside: Tensor | None = None, starts: Tensor | None = None, pool: FixedShare = POOL) -> Tensor:
    """Probabilities by token."""
    return pool.on_prefix(said, everywhere(said) if inside is None else inside, None, starts)[0].exp()


def forward(said: Tensor, inside: Tensor, starts: Tensor, *, hold: float, turn: float, none: float) -> Tensor:
    """The definition, state by state in double precision: alpha_t(j) ~ sum_i alpha_{t-1}(i) P(j | i) exp(said_t(j)).

    P(j | i) is share * prior(j), plus 1 - share for j = i: the text goes on, or begins anew as the prior says.
    """
    states = said.shape[2]
    prior = [none, *[(1 - none) / (states - 1)] * (states - 1)]
    found = torch.zeros(said.shape, dtype=torch.float64)
    for row in range(said.shape[0]):
        alpha = prior
        for token in range(said.shape[1]):
            evidence = said[row, token].tolist()
            starting = bool(starts[row, token])
            if inside[row, token] and (starting or any(evidence)):
                share = 1 - 0.5 ** (1 / hold)
                share = max(turn, share) if starting else share
                moved = [
                    sum(alpha[i] * (share * prior[j] + (1 - share) * (i == j)) for i in range(states))
                    for j in range(states)
                ]
                joint = [moved[j] * math.exp(evidence[j]) for j in range(states)]
                alpha = [value / sum(joint) for value in joint]
            found[row, token] = torch.tensor(alpha, dtype=torch.float64)
    return found


def test_equals_the_forward_recursion_of_a_hidden_markov_model():
    said = ratios()
    inside = everywhere(said)
    inside[0, :3] = inside[1, 20:] = inside[2, 9:12] = False
    starts = torch.zeros_like(inside)
    starts[:, 7] = starts[0, 3] = starts[2, 8] = True  # token 8 is silent, and a turn begins with it all the same
    expected = forward(said, inside, starts, hold=5.0, turn=0.8, none=0.3)
    assert torch.allclose(heard(said.double(), inside, starts), expected, rtol=1e-12, atol=0)
    assert torch.allclose(heard(said, inside, starts).double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("cuts", [(5,), (1, 2, 9, 17), tuple(range(1, TOKENS))])
def test_pieces_say_what_one_pass_says(cuts):
    said = ratios().double()
    inside = everywhere(said)
    inside[0, :3] = False
    starts = torch.zeros_like(inside)
    starts[:, 9] = True
    whole, last = POOL.on_prefix(said, inside, None, starts)
    before: Tally | None = None
    pieces = []
    for part, mask, begins in zip(*(t.tensor_split(cuts, dim=1) for t in (said, inside, starts)), strict=True):
        found, before = POOL.on_prefix(part, mask, before, begins)
        pieces.append(found)
    assert torch.allclose(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-12)
    assert before is not None and torch.equal(before.count, last.count)
    assert torch.equal(last.count[:, 0], torch.tensor([21.0, 24.0, 24.0], dtype=torch.float64))
    # What travels is what the last token hears.
    assert torch.equal(last.value, whole[:, -1])


def test_by_hand_with_two_experts():
    """hold 1 returns half of all belief; priors 1/2, 1/4, 1/4.

    The first token says 4 : 1 for expert 1: (1/2, 1, 1/4) becomes (2, 4, 1) / 7. Then half goes back, which makes
    (11, 11.5, 5.5) / 28, and the second token says 8 : 1 for expert 2: (11, 11.5, 44) / 66.5.
    """
    said = torch.tensor([[[0, math.log(4), 0], [0, 0, math.log(8)]]], dtype=torch.float64)
    found = heard(said, pool=FixedShare(hold=1.0, none=0.5))
    first = torch.tensor([2.0, 4.0, 1.0], dtype=torch.float64) / 7
    second = torch.tensor([11.0, 11.5, 44.0], dtype=torch.float64) / 66.5
    assert torch.allclose(found[0], torch.stack([first, second]), rtol=1e-12)


def test_a_silent_token_changes_nothing():
    said = ratios().double()
    found = heard(said)
    assert torch.equal(found[:, 4::4], found[:, 3:-1:4])
    assert torch.allclose(found[:, 0], POOL.prior(said).expand(3, -1), rtol=1e-12)
    spoken = said.any(dim=-1)[0]
    assert torch.allclose(found[:, spoken], heard(said[:, spoken]), rtol=1e-10)


def test_belief_goes_back_before_a_token_is_heard_and_not_after():
    """After one strong token nothing has gone back yet: the posterior is that of the prior alone."""
    said = torch.zeros(1, 1, 3, dtype=torch.float64)
    said[..., 1] = 5
    prior = POOL.prior(said)
    expected = prior * said[0, 0].exp()
    assert torch.allclose(heard(said)[0, 0], expected / expected.sum(), rtol=1e-12)


def test_the_start_of_a_turn_returns_its_share():
    said = torch.zeros(1, 2, 3, dtype=torch.float64)
    said[0, 0, 1] = 20
    starts = torch.tensor([[False, True]])
    before, after = heard(said, starts=starts)[0]
    prior = POOL.prior(said)
    assert torch.allclose(after, 0.8 * prior + 0.2 * before, rtol=1e-12)
    nothing = FixedShare(hold=5.0, turn=0.0, none=0.3)
    said[0, 1, 2] = 1e-9
    kept = heard(said, starts=starts, pool=nothing)
    # A turn never returns less than a token does.
    assert torch.allclose(kept, heard(said, pool=nothing), rtol=1e-12)


def test_hold_is_after_how_many_tokens_that_speak_for_all_alike_half_of_what_was_believed_beyond_the_prior_is_left():
    for hold in (1, 7, 64):
        pool = FixedShare(hold=float(hold), none=0.3)
        said = torch.full((1, 1 + 3 * hold, CHOICES), 0.7, dtype=torch.float64)
        said[0, 0] = 0
        said[0, 0, 4] = 30
        beyond = heard(said, pool=pool)[0] - pool.prior(said)
        for halves in (1, 2, 3):
            assert torch.allclose(beyond[halves * hold], beyond[0] / 2**halves, rtol=1e-9, atol=1e-15)


def test_padding_on_either_side_changes_nothing_whatever_stands_there():
    said = ratios()
    left, right = (torch.full((3, 4, CHOICES), value) for value in (1e4, float("nan")))
    padded = torch.cat([left, said, right], dim=1)
    inside = torch.arange(padded.shape[1]).expand(3, -1)
    inside = (inside >= 4) & (inside < 4 + TOKENS)
    found, tally = POOL.on_prefix(padded, inside, None)
    assert torch.equal(found[:, 4:-4], POOL.on_prefix(said, everywhere(said), None)[0])
    assert torch.allclose(found[:, :4].exp(), POOL.prior(said).expand(3, 4, -1), rtol=1e-6)
    assert torch.equal(found[:, -4:], found[:, -5:-4].expand(-1, 4, -1))
    assert torch.equal(tally.value, found[:, -1]) and tally.count.tolist() == [[TOKENS]] * 3
    prompt = POOL.on_prompt(padded, inside)
    assert torch.equal(prompt, found[:, -1:])


@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_huge_evidence_stays_finite_and_sums_to_one(size):
    said = torch.randn(4, 40, CHOICES, generator=torch.Generator().manual_seed(1)).sign() * size
    said[..., 0] = 0
    found, tally = POOL.on_prefix(said, everywhere(said), None)
    assert found.isfinite().all() and tally.value.isfinite().all()
    assert torch.allclose(found.exp().sum(dim=-1), torch.ones(4, 40), atol=1e-5)


@pytest.mark.parametrize("hold", [1.0, 64.0, 1e6, 1e12])
def test_what_stands_against_a_choice_is_bounded_whatever_was_heard(hold):
    """One token of evidence e leaves a choice with log-odds of at least e + log(q / (1 - q)), q = share * prior."""
    pool = FixedShare(hold=hold, none=0.5)
    said = torch.zeros(1, 501, CHOICES, dtype=torch.float64)
    said[0, :500, 3] = 1e4
    said[0, :500, 5] = -1e4
    said[0, 500, 5] = 5
    q = -math.expm1(-math.log(2) / hold) * 0.5 / 8
    least = 5 + math.log(q) - math.log1p(-q)
    after = heard(said, pool=pool)[0, -1, 5]
    # Just as much: nothing else speaks for it here.
    assert math.log(after) - math.log1p(-after) == pytest.approx(least, abs=1e-9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hold": 0.0}, r"hold = 0\.0 tokens is not between 0 and 1e12"),
        ({"hold": math.inf}, r"hold = inf tokens is not between 0 and 1e12"),
        ({"hold": math.nan}, r"hold = nan tokens is not between 0 and 1e12"),
        ({"turn": 1.5}, r"turn = 1\.5 is no share of belief in \[0, 1\]"),
        ({"none": 0.0}, r"none = 0\.0 is no probability between 0 and 1"),
        ({"none": 1.0}, r"none = 1\.0 is no probability between 0 and 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        FixedShare(**settings)


def test_a_bank_of_one_and_its_prior():
    said = torch.zeros(1, 1, 2)
    assert POOL.prior(said)[0].tolist() == pytest.approx([0.3, 0.7])
    assert heard(said)[0, 0].tolist() == pytest.approx([0.3, 0.7])


def test_belief_is_shared_among_those_that_may_be_chosen():
    """Row by row what a bank of the others alone would hear, whatever is said of the barred; they are believed in no more."""
    said = ratios().double()
    barred = torch.zeros(3, CHOICES, dtype=torch.bool)
    barred[0, 2] = barred[1, 1:] = True
    found, tally = POOL.on_prefix(said, everywhere(said), None, barred=barred)
    for row in range(3):
        left = (~barred[row]).nonzero()[:, 0]
        alone, kept = POOL.on_prefix(said[row : row + 1, :, left], everywhere(said[row : row + 1]), None)
        assert torch.allclose(found[row, :, left], alone[0], rtol=1e-10)
        assert torch.allclose(tally.value[row, left], kept.value[0], rtol=1e-10)
    assert (found.exp()[:, -1][barred] < 1e-300).all()


def test_a_token_that_speaks_of_barred_choices_alone_changes_nothing():
    said = torch.zeros(1, 3, CHOICES, dtype=torch.float64)
    said[0, 0, 1], said[0, 1:, 2] = 2.0, 50.0
    barred = (torch.arange(CHOICES) == 2)[None]
    found = POOL.on_prefix(said, everywhere(said), None, barred=barred)[0]
    assert torch.equal(found[0, 1:], found[0, :1].expand(2, -1))
