"""A router gives every present expert its share and no other any; its bias follows the load and moves choices alone."""

import pytest
import torch

from pmemx.core.bank import BankShape
from pmemx.core.block import LoraFactors
from pmemx.core.errors import ConfigError, IncompatibleBlock
from pmemx.core.grown import grown
from pmemx.core.shares import shares
from pmemx.gate.router import RouterGate
from pmemx.runtime.attach import attached
from pmemx.select.softmax import Softmax
from pmemx.select.top_k import TopK

QUERY, UP, DOWN = "layers.0.q_proj", "layers.0.up_proj", "layers.1.down_proj"
EXPERTS = tuple(f"e{number}" for number in range(8))
SHAPE = BankShape(EXPERTS, {QUERY: 8, UP: 8, DOWN: 12}, 8)
SITES_OF = {
    0: (QUERY, UP),
    1: (UP, DOWN),
    2: (UP, DOWN),
    3: (UP,),
    4: (DOWN,),
    5: (UP, DOWN),
    6: (UP, DOWN),
    7: (DOWN,),
}


def told(**settings) -> RouterGate:
    """A gate that knows where its experts stand: mixed ranks; at the query projection expert 0 stands alone."""
    torch.manual_seed(0)
    gate = RouterGate(SHAPE, **settings)
    for expert, sites in SITES_OF.items():
        rank = 1 + expert % 4
        gate.read_expert(
            expert, {s: LoraFactors(torch.zeros(rank, SHAPE.sites[s]), torch.zeros(5, rank), 1.0) for s in sites}
        )
    return gate


def read(site: str, seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 7, SHAPE.sites[site], generator=torch.Generator().manual_seed(seed))


def present(site: str) -> list[int]:
    return [expert for expert, sites in SITES_OF.items() if site in sites]


@pytest.mark.parametrize("site", SHAPE.sites)
def test_shares_are_a_softmax_over_the_experts_that_stand_at_the_site(site):
    gate, x = told(init_std=0.5), read(site)
    weight = gate.weights[list(SHAPE.sites).index(site)].detach()
    expected = torch.zeros(3, 7, 9)
    expected[..., [e + 1 for e in present(site)]] = (x @ weight[present(site)].T).softmax(dim=-1)
    assert torch.allclose(shares(gate(site, x)), expected, atol=1e-6)


@pytest.mark.parametrize("select", [Softmax(), TopK(k=2), TopK(k=8)], ids=repr)
@pytest.mark.parametrize("site", SHAPE.sites)
def test_neither_no_expert_nor_one_that_skips_the_site_is_ever_chosen(select, site):
    dense = select(told(init_std=3.0)(site, read(site))).dense()
    assert not dense[..., [e for e in range(8) if e not in present(site)]].any()
    assert torch.allclose(dense.sum(dim=-1), torch.ones(3, 7), atol=1e-6)


@pytest.mark.parametrize("granularity", ["token", "prefix", "prompt"])
@pytest.mark.parametrize("select", [Softmax(), TopK(k=1), TopK(k=2)], ids=repr)
def test_where_one_expert_stands_alone_its_share_is_one(select, granularity):
    gate = told(init_std=3.0, granularity=granularity)
    said = gate(QUERY, read(QUERY))
    pooled = said if granularity == "token" else gate.pool.on_prompt(said, torch.ones(3, 7, dtype=torch.bool))
    only = torch.eye(8)[0].expand(*pooled.shape[:2], 8)
    assert torch.equal(select(gate.score(QUERY, pooled)).dense(), only)


def test_a_layer_may_choose_whom_any_of_its_sites_has():
    gate = told(level="layer")
    at_query, at_down = gate(QUERY, read(QUERY))[..., 1:], gate(DOWN, read(DOWN))[..., 1:]
    assert ((at_query > -1e8).all(dim=(0, 1)).nonzero()[:, 0] == torch.tensor([0, 1, 2, 3, 5, 6])).all()
    assert ((at_down > -1e8).all(dim=(0, 1)).nonzero()[:, 0] == torch.tensor([1, 2, 4, 5, 6, 7])).all()
    assert (told(level="model")(QUERY, read(QUERY))[..., 1:] > -1e8).all()


def test_a_swapped_expert_may_stand_elsewhere():
    gate = told()
    gate.read_expert(0, {DOWN: LoraFactors(torch.zeros(1, 12), torch.zeros(5, 1), 1.0)})
    gate.read_expert(6, {QUERY: LoraFactors(torch.zeros(1, 8), torch.zeros(5, 1), 1.0)})
    assert Softmax()(gate(QUERY, read(QUERY))).dense().any(dim=0).any(dim=0).nonzero()[:, 0].tolist() == [6]
    found = Softmax()(gate(DOWN, read(DOWN))).dense().any(dim=0).any(dim=0).nonzero()[:, 0].tolist()
    assert found == [0, 1, 2, 4, 5, 7]


def test_the_start_is_small_and_normal():
    torch.manual_seed(1)
    gate = RouterGate(BankShape(EXPERTS, {"a.0.b": 4096}, 8), init_std=0.02)
    weight = gate.weights[0].detach()
    # Five standard errors of 32,768 draws.
    assert weight.mean().item() == pytest.approx(0, abs=5 * 0.02 / 2**7.5)
    assert weight.std().item() == pytest.approx(0.02, rel=5 / 2**8)
    assert (weight / 0.02).pow(4).mean().item() == pytest.approx(3, abs=0.3)


def test_the_bias_by_hand():
    """Six experts stand at the site and took 5, 2, 0, 1, 4 and 0 decisions, 2 on average; the other two do not count."""
    gate = told(balance_rate=0.25)
    load = torch.tensor([5, 2, 0, 1, 99, 4, 0, 99])
    gate.rebalance(UP, load)
    assert gate.load_bias(UP).tolist() == [0, -0.25, 0, 0.25, 0.25, 0, -0.25, 0.25, 0]
    gate.rebalance(UP, load)
    assert gate.load_bias(UP).tolist() == [0, -0.5, 0, 0.5, 0.5, 0, -0.5, 0.5, 0]
    assert not gate.load_bias(DOWN).any() and not gate.load_bias(QUERY).any()


def test_the_bias_of_a_decision_is_that_of_all_who_follow_it():
    gate = told(level="layer", balance_rate=1.0)
    gate.rebalance(UP, torch.tensor([9, 0, 0, 0, 0, 0, 0, 0]))
    assert gate.load_bias("layers.0").tolist() == [0, -1, 1, 1, 1, 0, 1, 1, 0]
    assert torch.equal(gate.load_bias(QUERY), gate.load_bias("layers.0"))
    assert not gate.load_bias("layers.1").any()
    whole = told(level="model", balance_rate=1.0)
    whole.rebalance(DOWN, torch.tensor([9, 0, 0, 0, 0, 0, 0, 0]))
    assert whole.load_bias("").tolist() == [0, -1, 1, 1, 1, 1, 1, 1, 1]


def test_a_bias_moves_who_is_chosen_and_no_weight_of_the_chosen():
    gate, x = told(balance_rate=1.0, init_std=0.3), read(UP)
    for _ in range(3):
        gate.rebalance(UP, torch.tensor([9, 0, 0, 9, 0, 9, 9, 0]))
    scores = gate(UP, x)
    select = TopK(k=1, renormalise=False)
    found = select.biased(scores, gate.load_bias(UP))
    assert set(found.index.unique().tolist()) <= {1, 2} and set(select(scores).index.unique().tolist()) > {1, 2}
    assert torch.equal(found.weight, shares(scores).gather(2, found.index + 1))


def test_without_a_rate_there_is_no_bias():
    assert told().load_bias(UP) is None


def test_an_expert_that_stands_nowhere_gets_no_bias():
    gate = RouterGate(BankShape(("a", "b"), {UP: 8}, 8), balance_rate=1.0)
    for expert in (0, 1):
        gate.read_expert(expert, {})
    gate.rebalance(UP, torch.tensor([3, 1]))
    assert gate.load_bias(UP).tolist() == [0, 0, 0]


def test_the_bias_is_kept_with_the_weights_and_presence_is_not():
    gate, other = told(balance_rate=0.5), told(balance_rate=0.5)
    gate.rebalance(UP, torch.tensor([5, 0, 0, 0, 0, 0, 0, 0]))
    other.load_state_dict(gate.state_dict())
    assert torch.equal(other.load_bias(UP), gate.load_bias(UP)) and gate.load_bias(UP).any()
    assert not any("present" in name for name in gate.state_dict())


def test_a_model_follows_the_bias(llama, bank, ids):
    """With a bias that outweighs every score, the expert that it favours does all the work."""
    torch.manual_seed(0)
    gate = RouterGate(bank.shape(32), balance_rate=100.0).eval()
    seen = []
    with torch.no_grad(), attached(llama, bank, gate=gate, select=TopK()) as routed:
        for site in bank.site_names:
            gate.rebalance(site, torch.tensor([9, 9, 9, 9, 9, 0, 9, 9]))
        with routed.observed(lambda observation: seen.append(observation.routing)):
            ours = routed.model(input_ids=ids).logits
    assert all((routing.index == 5).all() and (routing.weight == 1).all() for routing in seen)
    with torch.no_grad(), attached(llama, bank, weights=torch.eye(8)[5]) as routed:
        assert torch.allclose(routed.model(input_ids=ids).logits, ours, atol=1e-5)


def test_a_router_holds_for_its_own_experts_alone():
    with pytest.raises(IncompatibleBlock, match="RouterGate learnt holds for the experts"):
        grown(told(), RouterGate(BankShape((*EXPERTS, "e8"), SHAPE.sites, 8)))


@pytest.mark.parametrize("name", ["init_std", "balance_rate"])
def test_negative_settings_are_refused(name):
    with pytest.raises(ConfigError, match=rf"gate.{name} = -0.1 is negative"):
        RouterGate(SHAPE, **{name: -0.1})


def test_a_selection_that_cannot_choose_and_weigh_apart_is_refused(llama, bank, ids):
    gate = RouterGate(bank.shape(32), balance_rate=0.001)
    with (
        torch.no_grad(),
        attached(llama, bank, gate=gate, select=Softmax()) as routed,
        pytest.raises(ConfigError, match="select=top_k"),
    ):
        routed.model(input_ids=ids)


def test_gradients_are_finite_and_none_reaches_an_expert_that_is_not_there():
    gate, x = told(init_std=0.5), read(UP)
    (Softmax()(gate(UP, x * 1e3)).dense() * torch.arange(8.0)).sum().backward()
    gradient = gate.weights[1].grad
    assert gradient.isfinite().all() and gradient.any() and not gradient[[4, 7]].any()
