"""Average activation remembers, at every site, where the prompts of an expert's examples lie."""

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.core.errors import ConfigError
from pmemx.core.gate import NEVER
from pmemx.core.grown import grown
from pmemx.core.vote import Last
from pmemx.gate.average_activation import AverageActivationGate
from pmemx.runtime.attach import attached
from pmemx.select.top_k import TopK

SITES = {"layers.0.up_proj": 6, "layers.1.down_proj": 10}
NAMES = tuple(f"e{i}" for i in range(8))
PROMPT = torch.ones(30, 4, dtype=torch.bool)


def shape(names: tuple[str, ...] = NAMES) -> BankShape:
    return BankShape(names, SITES, 6)


def examples(choice: int, site: str, length: int = 4) -> Tensor:
    """Thirty prompts around a point of their own, at lengths of their own."""
    generator = torch.Generator().manual_seed(100 * choice + SITES[site])
    centre = 3 * torch.randn(SITES[site], generator=generator)
    x = centre + torch.randn(30, length, SITES[site], generator=generator)
    return x * torch.rand(30, length, 1, generator=generator)


def show(gate: AverageActivationGate, choices: list[int]) -> AverageActivationGate:
    for site in SITES:
        for choice in choices:
            pooled = gate.pool.on_prompt(gate(site, examples(choice, site)), PROMPT)
            gate.see(site, pooled, torch.full((30,), choice))
    return gate


def shown(choices: range = range(1, 9), **settings) -> AverageActivationGate:
    return show(AverageActivationGate(shape(), **settings), list(choices))


def scored(gate: AverageActivationGate, site: str, x: Tensor) -> Tensor:
    return gate.score(site, gate(site, x))


@pytest.fixture
def x():
    return torch.randn(3, 5, 10, generator=torch.Generator().manual_seed(33))


SITE = "layers.1.down_proj"


def test_unit_scores_are_cosines_with_the_mean_of_unit_activations(x):
    centroids = [F.normalize(examples(c, SITE), dim=-1).mean(dim=(0, 1)) for c in range(1, 9)]
    expected = torch.stack([F.cosine_similarity(x, c.expand_as(x), dim=-1) for c in centroids], dim=-1)
    assert torch.allclose(scored(shown(), SITE, x)[..., 1:], expected, atol=1e-5)


def test_with_layer_norm_and_scaled_scores_are_those_of_phatgoose(x):
    """LN(x) . LN(c) / sqrt(width), where c is a plain mean."""

    def normal(y: Tensor) -> Tensor:
        return (y - y.mean(dim=-1, keepdim=True)) / (y.var(dim=-1, keepdim=True, correction=0) + 1e-5).sqrt()

    centroids = torch.stack([normal(normal(examples(c, SITE)).mean(dim=(0, 1))) for c in range(1, 9)])
    gate = shown(normalise="layer_norm", scaled=True)
    assert torch.allclose(scored(gate, SITE, x)[..., 1:], normal(x) @ centroids.T / 10**0.5, atol=1e-4)


def test_unnormalised_scaled_and_of_the_last_token_scores_are_those_of_mttl(x):
    """x . c / sqrt(width), where c is the mean of last tokens at length 1."""
    means = [examples(c, SITE)[:, -1].mean(dim=0) for c in range(1, 9)]
    expected = torch.stack([x @ (mean / mean.norm()) for mean in means], dim=-1) / 10**0.5
    gate = shown(normalise="none", scaled=True, pool=Last())
    assert torch.allclose(scored(gate, SITE, x)[..., 1:], expected, atol=1e-4)


def test_by_hand():
    gate = AverageActivationGate(BankShape(("law", "botany"), {"layers.0.up_proj": 2}, 2))
    for choice, point in ((1, [0.0, 9.0]), (2, [5.0, 0.0]), (2, [0.0, 2.0])):
        x = torch.tensor([[point]])
        gate.see("layers.0.up_proj", gate("layers.0.up_proj", x), torch.tensor([choice]))
    scores = scored(gate, "layers.0.up_proj", torch.tensor([[[30.0, 40.0]]]))
    assert torch.allclose(scores, torch.tensor([[[NEVER, 0.8, 1.4 / 2**0.5]]]))


def test_sends_tokens_to_the_expert_whose_examples_lie_there():
    gate = shown(range(9))
    for site in SITES:
        found = torch.stack([scored(gate, site, examples(c, site)).argmax(dim=-1) for c in range(9)])
        assert (found == torch.arange(9)[:, None, None]).float().mean() > 0.8


def test_a_vote_over_unit_tokens_is_the_mean_of_their_scores(x):
    gate, prompt = shown(granularity="prompt"), torch.ones(3, 5, dtype=torch.bool)
    voted = gate.score(SITE, gate.pool.on_prompt(gate(SITE, x), prompt))
    assert torch.allclose(voted[..., 1:], scored(gate, SITE, x)[..., 1:].mean(dim=1, keepdim=True), atol=1e-6)


def test_the_order_and_the_batches_of_examples_do_not_matter(x):
    whole, pieces = AverageActivationGate(shape()), AverageActivationGate(shape())
    pooled = torch.cat([whole(SITE, examples(c, SITE)).mean(dim=1, keepdim=True) for c in range(9)])
    choice = torch.arange(9).repeat_interleave(30)
    whole.see(SITE, pooled, choice)
    for index in torch.randperm(270, generator=torch.Generator().manual_seed(1)).split(50):
        pieces.see(SITE, pooled[index], choice[index])
    assert torch.equal(scored(whole, SITE, x), scored(pieces, SITE, x))


def test_sites_do_not_mix(x):
    alone, both = AverageActivationGate(shape()), shown(range(9))
    for choice in range(9):
        said = alone.pool.on_prompt(alone(SITE, examples(choice, SITE)), PROMPT)
        alone.see(SITE, said, torch.full((30,), choice))
    assert torch.equal(scored(alone, SITE, x), scored(both, SITE, x))
    with pytest.raises(ConfigError, match=r"no example of e0, .*e7 at 'layers\.0\.up_proj'"):
        scored(alone, "layers.0.up_proj", torch.ones(1, 1, 6))


def test_text_that_needs_no_expert_has_its_own_centroid_or_a_constant():
    general = examples(0, SITE)
    assert scored(shown(), SITE, general)[..., 0].eq(NEVER).all()
    assert scored(shown(abstain=2.0), SITE, general).argmax(dim=-1).eq(0).all()
    assert (scored(shown(range(9)), SITE, general).argmax(dim=-1) == 0).float().mean() > 0.8


def test_an_expert_without_examples_is_named(x):
    with pytest.raises(ConfigError, match=f"no example of e5, e7 at '{SITE}'; show it prompts of every expert"):
        scored(show(AverageActivationGate(shape()), [1, 2, 3, 4, 5, 7]), SITE, x)


def test_grows_by_an_expert_and_keeps_what_it_knows(x):
    gate = shown(range(9))
    larger = grown(gate, AverageActivationGate(shape(("new", *NAMES))))
    assert isinstance(larger, AverageActivationGate)
    with pytest.raises(ConfigError, match="no example of new"):
        scored(larger, SITE, x)
    for site in SITES:
        pooled = torch.randn(4, 1, SITES[site], generator=torch.Generator().manual_seed(0))
        larger.see(site, pooled, torch.ones(4, dtype=torch.long))
    assert torch.equal(scored(larger, SITE, x)[..., [0, *range(2, 10)]], scored(gate, SITE, x))


def test_an_unknown_normalisation_is_refused():
    # In the test run, where annotations are checked, jaxtyping is the first to refuse.
    with pytest.raises((ConfigError, TypeCheckError), match="batch"):
        AverageActivationGate(shape(), normalise="batch")  # pyright: ignore[reportArgumentType]


def test_learns_what_a_model_reads_and_serves_it(llama, bank, ids):
    """Four prompts, each the example of one expert, and the rest of the bank somewhere else: each finds its own again."""
    gate = AverageActivationGate(bank.shape(32), granularity="prompt", level="model")
    attention = torch.ones_like(ids)
    choices: list[Tensor] = []
    with torch.no_grad(), attached(llama, bank, gate=gate, select=TopK(k=1)) as routed:
        for site, pooled in routed.pooled_at_sites(ids, attention).items():
            gate.see(site, pooled, torch.tensor([2, 5, 7, 8]))
            gate.see(site, -pooled, torch.tensor([1, 3, 4, 6]))
        with routed.observed(lambda seen: choices.append(seen.routing.dense()[:, 0].argmax(dim=-1) + 1)):
            routed.model(input_ids=ids)
    assert torch.equal(choices[0], torch.tensor([2, 5, 7, 8]))
