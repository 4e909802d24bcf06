"""LoGo weighs experts by how strongly they answer the last token of the prompt at one site."""

import pytest
import torch
from torch import Tensor

from pmemx.core.bank import BankShape
from pmemx.core.block import LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.gate.output_norm import OutputNormGate, last_site
from pmemx.runtime.attach import attached
from pmemx.select.softmax import Softmax
from pmemx.select.top_k import TopK

SITE, OTHER = "layers.0.self_attn.q_proj", "layers.1.up_proj"
NOTHING = torch.finfo(torch.float32).tiny


def factors(seed: int, rank: int = 4, size: float = 1.0) -> LoraFactors:
    generator = torch.Generator().manual_seed(seed)
    return LoraFactors(torch.randn(rank, 16, generator=generator), torch.randn(24, rank, generator=generator), size)


EIGHT = [factors(seed, rank=1 + seed % 4, size=0.5 + seed % 3) for seed in range(8)]


def gate_of(*experts: LoraFactors | None, **settings) -> OutputNormGate:
    shape = BankShape(tuple(f"e{i}" for i in range(len(experts))), {SITE: 16, OTHER: 12}, 16)
    gate = OutputNormGate(shape, **settings)
    for number, expert in enumerate(experts):
        gate.read_expert(number, {} if expert is None else {SITE: expert})
    return gate


def scored(gate: OutputNormGate, x: Tensor) -> Tensor:
    return gate.score(SITE, gate(SITE, x))


@pytest.fixture
def x():
    return torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(33))


def published(experts: list[LoraFactors], x: Tensor, signal: str) -> Tensor:
    """The signals of dense outputs."""
    outputs = torch.stack([x @ e.delta().T for e in experts], dim=-2)
    if signal == "norm":
        return outputs.norm(dim=-1)
    share = outputs.softmax(dim=-1)
    return 1 / (1e-6 - (share * share.clamp_min(1e-30).log()).sum(dim=-1))


@pytest.mark.parametrize("signal", ["norm", "inverse_entropy"])
class TestAgainstDenseOutputs:
    def test_raw_signals_are_theirs(self, x, signal):
        gate = gate_of(*EIGHT, signal=signal, normalise=False)
        assert torch.allclose(scored(gate, x)[..., 1:].exp(), published(EIGHT, x, signal), rtol=1e-4)

    def test_normalised_signals_are_those_of_updates_divided_by_their_norms(self, x, signal):
        divided = [LoraFactors(e.A, e.B, e.scale / float(e.delta().norm())) for e in EIGHT]
        gate = gate_of(*EIGHT, signal=signal)
        assert torch.allclose(scored(gate, x)[..., 1:].exp(), published(divided, x, signal), rtol=1e-4)

    def test_weights_of_the_best_are_their_shares_of_the_signal(self, x, signal):
        value, best = published(EIGHT, x, signal).topk(3, dim=-1)
        expected = torch.zeros(2, 5, 8).scatter(-1, best, value / value.sum(dim=-1, keepdim=True))
        gate = gate_of(*EIGHT, signal=signal, normalise=False)
        assert torch.allclose(TopK(k=3)(scored(gate, x)).dense(), expected, atol=1e-5)


def test_by_hand():
    """One expert doubles the first axis, one gives the second back; the token has 3 and 4 there."""
    first = LoraFactors(torch.eye(16)[:1], torch.eye(24)[:, :1], 2.0)
    second = LoraFactors(torch.eye(16)[1:2], torch.eye(24)[:, 5:6], 1.0)
    token = torch.zeros(1, 1, 16)
    token[0, 0, :2] = torch.tensor([3.0, 4.0])
    weights = Softmax()(scored(gate_of(first, second, normalise=False), token)).dense()
    assert torch.allclose(weights, torch.tensor([[[0.6, 0.4]]]), atol=1e-6)
    weights = Softmax()(scored(gate_of(first, second), token)).dense()
    assert torch.allclose(weights, torch.tensor([[[3 / 7, 4 / 7]]]), atol=1e-6)


@pytest.mark.parametrize("signal", ["norm", "inverse_entropy"])
@pytest.mark.parametrize(("normalise", "captured"), [(True, False), (False, True)])
def test_an_expert_20_times_larger_captures_everything_only_when_raw(signal, normalise, captured):
    x = torch.randn(4, 50, 16, generator=torch.Generator().manual_seed(33))
    # Of outputs much larger than 1 every softmax is one-hot, whosever they are.
    size = 1.0 if signal == "norm" else 0.02
    experts = [factors(0, size=20 * size), *[factors(seed, size=size) for seed in range(1, 8)]]
    found = scored(gate_of(*experts, signal=signal, normalise=normalise), x).argmax(dim=-1)
    share = (found == 1).float().mean()
    assert share > 0.9 if captured else share < 0.4


@pytest.mark.parametrize("signal", ["norm", "inverse_entropy"])
def test_an_expert_that_skips_the_site_weighs_nothing(x, signal):
    empty = LoraFactors(torch.randn(2, 16), torch.zeros(24, 2), 1.0)
    weights = Softmax()(scored(gate_of(EIGHT[3], None, empty, EIGHT[1], signal=signal), x)).dense()
    assert weights[..., 1:3].lt(1e-30).all()
    assert torch.allclose(weights[..., [0, 3]].sum(dim=-1), torch.ones(2, 5))


def test_a_rank_beyond_the_width_of_the_output_is_no_matter(x):
    generator = torch.Generator().manual_seed(0)
    wide = LoraFactors(torch.randn(9, 16, generator=generator), torch.randn(4, 9, generator=generator), 1.0)
    gate = gate_of(wide, normalise=False)
    assert torch.allclose(scored(gate, x)[..., 1:].exp(), published([wide], x, "norm"), rtol=1e-4)


@pytest.mark.parametrize("signal", ["norm", "inverse_entropy"])
def test_a_swapped_expert_is_read_again_whatever_its_rank(x, signal):
    gate = gate_of(factors(0, rank=2), factors(1, rank=2), signal=signal)
    for rank in (4, 1):
        gate.read_expert(0, {SITE: factors(2, rank=rank)})
        fresh = gate_of(factors(2, rank=rank), factors(1, rank=2), signal=signal)
        assert torch.allclose(scored(gate, x), scored(fresh, x), atol=1e-5)
    gate.read_expert(0, {})
    assert torch.allclose(scored(gate, x)[..., 1].exp(), torch.tensor(NOTHING))


def test_other_sites_say_nothing(x):
    gate = gate_of(*EIGHT)
    said = gate(OTHER, torch.randn(2, 5, 12))
    assert said.shape == (2, 5, 0)
    assert torch.equal(gate.score(OTHER, said), torch.zeros(2, 5, 9))


def test_the_last_query_projection_decides_by_the_number_of_its_layer():
    sites = [f"layers.{layer}.{part}" for layer in (0, 10, 9) for part in ("self_attn.q_proj", "mlp.down_proj")]
    assert last_site(sites, None) == "layers.10.self_attn.q_proj"
    assert last_site(sites, "down_proj") == "layers.10.mlp.down_proj"
    assert last_site(sites, "layers.9.mlp.down_proj") == "layers.9.mlp.down_proj"
    assert last_site(["layers.2.b", "layers.10.a", "layers.10.c", "layers.9.d"], None) == "layers.10.c"
    with pytest.raises(ConfigError, match=r"gate.site 'k_proj' is no site of the bank, whose last is 'layers.10"):
        last_site(sites, "k_proj")


def test_the_last_token_of_the_prompt_decides_for_the_whole_model(llama, bank, ids):
    """What the base's query projection reads there, through dense updates; rows end at different places."""
    site, ends = "model.layers.1.self_attn.q_proj", torch.tensor([3, 8, 5, 6])
    prompt = torch.arange(9) <= ends[:, None]
    gate = OutputNormGate(bank.shape(32), normalise=False)
    read: list[Tensor] = []
    hook = llama.get_submodule(site).register_forward_pre_hook(lambda _, args: read.append(args[0]))
    with torch.no_grad():
        llama(input_ids=ids)
    hook.remove()
    experts = [bank.factors(name)[site] for name in bank.names]
    signal = published(experts, read[0][torch.arange(4), ends], "norm")
    weights: dict[str, Tensor] = {}
    with (
        torch.no_grad(),
        attached(llama, bank, gate=gate, select=Softmax()) as routed,
        routed.observed(lambda seen: weights.update({seen.site: seen.routing.dense()})),
        routed.given(prompt=prompt),
    ):
        routed.model(input_ids=ids)
    assert gate.site == site and weights.keys() == set(bank.site_names)
    for found in weights.values():
        assert torch.allclose(found[:, 0], signal / signal.sum(dim=-1, keepdim=True), atol=1e-5)
