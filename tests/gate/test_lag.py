"""LAG chooses by SpectR among those that Arrow retrieves, whether tokens decide alone or vote."""

import pytest
import torch
from torch import Tensor

from pmemx.core.bank import BankShape
from pmemx.core.block import LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.core.gate import NEVER
from pmemx.gate.arrow import ArrowGate
from pmemx.gate.lag import LagGate
from pmemx.gate.spectr import SpectrGate
from pmemx.runtime.attach import attached
from pmemx.select.top_k import TopK

SITE = "layers.0.up_proj"


def factors(seed: int, rank: int = 4, size: float = 1.0) -> LoraFactors:
    generator = torch.Generator().manual_seed(seed)
    return LoraFactors(torch.randn(rank, 16, generator=generator), torch.randn(24, rank, generator=generator), size)


EIGHT = [factors(seed, rank=1 + seed % 4) for seed in range(8)]


def filled(gate, experts):
    for number, expert in enumerate(experts):
        gate.read_expert(number, {} if expert is None else {SITE: expert})
    return gate


def shape(number: int) -> BankShape:
    return BankShape(tuple(f"e{i}" for i in range(number)), {SITE: 16}, 16)


def gate_of(*experts: LoraFactors | None, **settings) -> LagGate:
    return filled(LagGate(shape(len(experts)), **settings), experts)


def scored(gate: LagGate, x: Tensor) -> Tensor:
    return gate.score(SITE, gate(SITE, x))


@pytest.fixture
def x():
    return torch.randn(3, 40, 16, generator=torch.Generator().manual_seed(33))


def dense(experts: list[LoraFactors], x: Tensor, k: int) -> Tensor:
    """The paper's equations 1 to 7, of the decompositions of dense updates."""
    vectors = [torch.linalg.svd(e.delta().double())[2][: e.rank].float() for e in experts]
    retrieved = torch.stack([(x @ V[0]).abs() for V in vectors], dim=-1).topk(k, dim=-1).indices
    rank = torch.stack([(x @ V.T).norm(dim=-1) for V in vectors], dim=-1)
    return retrieved.gather(-1, rank.gather(-1, retrieved).argmax(dim=-1, keepdim=True))[..., 0]


@pytest.mark.parametrize("k", [2, 5, 8])
def test_chooses_what_the_dense_decompositions_choose(x, k):
    even = [factors(seed) for seed in range(8)]
    assert torch.equal(scored(gate_of(*even, retrieved=k), x).argmax(dim=-1) - 1, dense(even, x, k))


def test_by_hand():
    """Expert 0 reads the first axis most, expert 1 the second; the token lies along what each of the two reads less."""
    read = torch.eye(16)
    gains = torch.diag(torch.tensor([3.0, 1.0]))
    up = torch.eye(24)[:, :2] @ gains
    experts = [LoraFactors(read[[0, 2]], up, 1.0), LoraFactors(read[[1, 3]], up, 1.0)]
    token = torch.zeros(1, 1, 16)
    token[0, 0, :4] = torch.tensor([2.0, 1.0, 0.0, 5.0])
    assert torch.allclose(scored(gate_of(*experts, retrieved=1), token)[0, 0, 1:], torch.tensor([2.0 / 2**0.5, NEVER]))
    expected = torch.tensor([2.0, 26**0.5]) / 2**0.5
    assert torch.allclose(scored(gate_of(*experts, retrieved=2), token)[0, 0, 1:], expected)


def test_scores_are_those_of_spectr_where_arrow_retrieves_and_never_elsewhere(x):
    arrow, spectr = filled(ArrowGate(shape(8)), EIGHT), filled(SpectrGate(shape(8), spectrum="flat"), EIGHT)
    best = arrow(SITE, x)[..., 1:].topk(3, dim=-1).indices + 1
    found, rank = scored(gate_of(*EIGHT, retrieved=3), x), spectr(SITE, x)
    assert torch.equal(found.gather(-1, best), rank.gather(-1, best))
    assert found[..., 1:].eq(NEVER).sum(dim=-1).eq(5).all()


def test_retrieving_one_is_arrow_and_retrieving_all_is_spectr(x):
    arrow, spectr = filled(ArrowGate(shape(8)), EIGHT), filled(SpectrGate(shape(8), spectrum="flat"), EIGHT)
    assert torch.equal(scored(gate_of(*EIGHT, retrieved=1), x).argmax(dim=-1), arrow(SITE, x).argmax(dim=-1))
    for k in (8, 20):
        assert torch.equal(scored(gate_of(*EIGHT, retrieved=k), x), spectr(SITE, x))


def test_a_vote_retrieves_once_by_what_all_its_tokens_said(x):
    gate = gate_of(*EIGHT, retrieved=3, granularity="prompt")
    said = gate(SITE, x)
    found = gate.score(SITE, gate.pool.on_prompt(said, torch.ones(3, 40, dtype=torch.bool)))
    near, rank = said.mean(dim=1, keepdim=True).chunk(2, dim=-1)
    for row in range(3):
        best = near[row, 0].topk(3).indices
        expected = torch.full((8,), NEVER).scatter(0, best, rank[row, 0, best])
        assert torch.allclose(found[row, 0, 1:], expected, atol=1e-5)


def test_over_the_whole_model_a_site_that_does_not_retrieve_an_expert_has_no_veto(x):
    found = scored(gate_of(*EIGHT, retrieved=3, level="model"), x)[..., 1:]
    by_site = scored(gate_of(*EIGHT, retrieved=3), x)[..., 1:]
    assert torch.equal(found, by_site.masked_fill(by_site == NEVER, 0.0))
    assert found.ge(0).all() and found.eq(0).sum(dim=-1).eq(5).all()


def test_experts_that_skip_the_site_tie_and_are_no_ones_favourite(x):
    experts = [EIGHT[0], None, EIGHT[1], None]
    found = scored(gate_of(*experts, retrieved=3), x)
    assert found[..., [2, 4]].eq(0).all() and found[..., [1, 3]].gt(0).all()
    assert scored(gate_of(*experts, retrieved=2), x)[..., [2, 4]].eq(NEVER).all()


def test_the_size_of_an_expert_has_no_say(x):
    large = [factors(0, rank=1, size=20.0), *EIGHT[1:]]
    assert torch.allclose(scored(gate_of(*EIGHT), x), scored(gate_of(*large), x), atol=1e-5)


def test_abstains_below_a_threshold_when_told_to():
    token = 1e-3 * torch.ones(1, 1, 16)
    assert scored(gate_of(*EIGHT, abstain=0.5), token).argmax().item() == 0
    assert scored(gate_of(*EIGHT), token).argmax().item() > 0


def test_retrieving_nobody_is_refused():
    with pytest.raises(ConfigError, match=r"gate\.retrieved = 0"):
        gate_of(*EIGHT, retrieved=0)


def test_votes_over_prompt_and_sites_of_a_model_add_up_site_by_site(llama, bank, ids):
    gate = LagGate(bank.shape(32), granularity="prompt", level="model", retrieved=3)
    heard: list[Tensor | None] = []
    with torch.no_grad(), attached(llama, bank, gate=gate, select=TopK(k=1)) as routed:
        by_site = routed.pooled_at_sites(ids, torch.ones_like(ids))
        with routed.observed(lambda seen: heard.append(seen.scores)):
            routed.model(input_ids=ids)
    expected = torch.stack([gate.score(site, pooled) for site, pooled in by_site.items()]).sum(dim=0)
    found = heard[0]
    assert found is not None and len(by_site) == len(bank.site_names)
    assert torch.allclose(found, expected, rtol=1e-5)
    assert found[..., 1:].gt(0).all()
