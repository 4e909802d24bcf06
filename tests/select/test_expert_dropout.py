"""Expert dropout leaves out experts at its rate, alike whenever it is asked, and never the last one."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pmemx.core.bank import ExpertBank
from pmemx.core.errors import ConfigError
from pmemx.core.gate import NEVER
from pmemx.gate.router import RouterGate
from pmemx.runtime.attach import attached
from pmemx.select.capacity import Capacity
from pmemx.select.expert_dropout import ExpertDropout
from pmemx.select.raw import Raw
from pmemx.select.softmax import Softmax
from pmemx.select.top_k import TopK
from tests.runtime.tiny_models import VOCAB, WIDTH, block, tiny_llama


def random_scores(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2


def kept(select: ExpertDropout, scores: torch.Tensor) -> torch.Tensor:
    return select(scores).dense() > 0


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_every_expert_is_dropped_at_the_rate_in_every_decision_by_itself(rate):
    left = kept(ExpertDropout(select=Softmax(), rate=rate, seed=3), random_scores(100, 100, 9)).flatten(0, 1).double()
    # Where all eight would go (0.4 % of decisions at rate 1/2) none goes.
    one, two = (1 - rate) + rate**8, (1 - rate) ** 2 + rate**8
    expected = torch.full((8, 8), two).double().fill_diagonal_(one)
    assert torch.allclose(left.T @ left / len(left), expected, atol=5 * 0.5 / 100)


def test_over_seeds_too_an_expert_is_dropped_at_the_rate():
    scores = random_scores(1, 1, 9)
    left = torch.stack([kept(ExpertDropout(select=Softmax(), rate=0.3, seed=s), scores) for s in range(1000)])
    assert torch.allclose(left.float().mean(dim=0), torch.tensor(0.7), atol=5 * 0.5 / 1000**0.5)


def test_the_others_share_what_the_dropped_had():
    scores = random_scores(6, 5, 9)
    select = ExpertDropout(select=Softmax(), rate=0.4, seed=1)
    dense, left = select(scores).dense(), kept(select, scores)
    share = scores.softmax(dim=-1)
    alive = torch.cat([torch.ones(6, 5, 1), left], dim=-1)
    assert torch.allclose(dense, (share * alive / (share * alive).sum(dim=-1, keepdim=True))[..., 1:], atol=1e-6)
    assert 0 < left.float().mean() < 1


def test_top_k_chooses_among_the_others():
    scores = random_scores(6, 5, 9)
    settings = {"rate": 0.4, "seed": 1}
    left = kept(ExpertDropout(select=Softmax(), **settings), scores)
    among = scores.masked_fill(~torch.cat([torch.ones(6, 5, 1).bool(), left], dim=-1), -math.inf)
    found = ExpertDropout(select=TopK(k=2), **settings)(scores).dense()
    assert torch.equal(found, TopK(k=2)(among).dense()) and not torch.equal(found, TopK(k=2)(scores).dense())
    bias = torch.arange(9.0)
    biased = ExpertDropout(select=TopK(k=2), **settings).biased(scores, bias).dense()
    assert torch.equal(biased, TopK(k=2).biased(among, bias).dense())


@pytest.mark.parametrize("far", [NEVER, -math.inf])
def test_where_all_that_could_be_chosen_would_go_none_goes(far):
    scores = torch.full((1, 400, 9), far)
    scores[..., 2] = torch.randn(400, generator=torch.Generator().manual_seed(2))
    scores[..., 5] = torch.randn(400, generator=torch.Generator().manual_seed(3))
    left = kept(ExpertDropout(select=Softmax(), rate=0.9), scores)
    assert left.any(dim=-1).all() and not left[..., [0, 2, 3, 5, 6, 7]].any()
    both, one = left[0].sum(dim=-1).eq(2).float().mean(), left[0].sum(dim=-1).eq(1).float().mean()
    # Both stay when neither goes (0.01) or both would (0.81).
    assert both.item() == pytest.approx(0.82, abs=5 * 0.5 / 20) and one.item() == pytest.approx(0.18, abs=5 * 0.5 / 20)


def test_no_expert_is_never_dropped():
    scores = random_scores(1, 300, 9)
    scores[..., 0] = 50.0
    assert not ExpertDropout(select=TopK(), rate=0.9)(scores).dense().any()


def test_a_rate_of_zero_is_the_selection_itself():
    scores = random_scores(4, 5, 9)
    assert torch.equal(ExpertDropout(select=Softmax(), rate=0.0)(scores).dense(), Softmax()(scores).dense())


def test_another_seed_drops_others():
    scores = random_scores(8, 16, 9)
    first, second = (kept(ExpertDropout(select=Softmax(), rate=0.5, seed=seed), scores) for seed in (0, 1))
    assert 0.4 < (first != second).float().mean() < 0.6


def test_a_decision_falls_alike_in_another_place_and_after_rounding():
    select, scores = ExpertDropout(select=TopK(k=2), rate=0.5, seed=5), random_scores(8, 16, 9)
    whole = select(scores).dense()
    alone = torch.stack([select(scores[b : b + 1, t : t + 1]).dense()[0, 0] for b in range(8) for t in range(16)])
    assert torch.equal(alone.view_as(whole), whole)
    rounded = select(scores * (1 + 2e-7)).dense()
    assert (rounded - whole).abs().amax(dim=-1).gt(1e-5).float().mean() < 0.02


def test_threads_drop_what_one_thread_drops_and_no_global_state_moves():
    select, before = ExpertDropout(select=Softmax(), rate=0.5, seed=9), torch.get_rng_state()
    batches = [random_scores(4, 8, 9, seed=seed) for seed in range(16)]
    alone = [select(scores).dense() for scores in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda scores: select(scores).dense(), batches))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_dropped_get_no_gradient():
    scores = random_scores(4, 5, 9).requires_grad_()
    select = ExpertDropout(select=Softmax(), rate=0.5, seed=2)
    (select(scores).dense() * torch.arange(8.0)).sum().backward()
    left = kept(select, scores.detach())
    assert not scores.grad[..., 1:][~left].any() and scores.grad[..., 1:][left].ne(0).any()


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(ConfigError, match=rf"select.rate = {rate} is no probability"):
        ExpertDropout(select=Softmax(), rate=rate)


def test_weights_that_are_no_shares_are_refused():
    with pytest.raises(ConfigError, match="Raw weighs experts by their scores"):
        ExpertDropout(select=Raw())


@pytest.mark.parametrize("select", [ExpertDropout(select=TopK(k=2), rate=0.4), Capacity(k=2, factor=0.7)], ids=repr)
def test_checkpointed_layers_are_computed_again_with_the_same_experts(select):
    model = tiny_llama().train()
    bank = ExpertBank([block(model, number) for number in range(8)])
    torch.manual_seed(0)
    gate = RouterGate(bank.shape(WIDTH), init_std=0.3)
    ids = torch.randint(3, VOCAB, (4, 9), generator=torch.Generator().manual_seed(7))
    found = []
    with attached(model, bank, gate=gate, select=select):
        for checkpointed in (False, True):
            if checkpointed:
                model.activation_checkpointing_enable()
            gate.zero_grad()
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            found.append([parameter.grad.clone() for parameter in gate.parameters()])
    assert max(float(gradient.abs().max()) for gradient in found[0]) > 1e-4
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-8) for a, b in zip(*found, strict=True))
