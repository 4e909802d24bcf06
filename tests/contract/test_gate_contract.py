"""Laws of every gate in conf/gate, over a bank whose experts differ in rank and in the sites they adapt."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError
from kv_cache import CACHE, cache_of
from omegaconf import OmegaConf
from safetensors.torch import load, save
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from pmemx.core.bank import ExpertBank
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.core.gate import ContextGate, DetectorGate, ExampleGate, FactorGate, Gate, SiteExampleGate, SiteGate
from pmemx.runtime.attach import attached
from pmemx.select.softmax import Softmax
from pmemx.stage.build import build

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "conf" / "gate").glob("*.yaml"))
SITES = {"model.layers.0.mlp.up_proj": (16, 24), "model.layers.1.mlp.down_proj": (24, 16)}
WIDTH, TOKENS = 16, 7
EIGHT = tuple(range(8))


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def expert(number: int, size: float = 1.0) -> CapabilityBlock:
    """Expert `number`: rank 1 to 4; 2 and 5 skip the second site."""
    generator, rank = torch.Generator().manual_seed(number), 1 + number % 4
    factors = {
        site: LoraFactors(
            torch.randn(rank, width_in, generator=generator),
            torch.randn(width_out, rank, generator=generator) * size,
            scale=0.5,
        )
        for place, (site, (width_in, width_out)) in enumerate(SITES.items())
        if not (place and number % 3 == 2)
    }
    return CapabilityBlock(BlockCard(name=f"e{number}", domain="test", base=""), factors)


def settings(file: Path) -> dict:
    return OmegaConf.to_container(OmegaConf.load(file))


def bank_of(numbers: Sequence[int] = EIGHT, sizes: Sequence[float] = (1.0,) * 8) -> ExpertBank:
    return ExpertBank([expert(number, size) for number, size in zip(numbers, sizes, strict=False)])


def made(file: Path, bank: ExpertBank | None = None, **changes: str) -> Gate:
    """The gate, ready to serve: weights off their initial values, factors read, examples seen."""
    bank = bank_of() if bank is None else bank
    torch.manual_seed(0)
    gate = build(settings(file) | changes)(bank.shape(WIDTH))
    for parameter in gate.parameters():
        parameter.data += torch.randn_like(parameter) * 0.3
    if isinstance(gate, FactorGate):
        for place, name in enumerate(bank.names):
            gate.read_expert(place, bank.factors(name))
    show(gate, bank)
    return gate.eval()


def show(gate: Gate, bank: ExpertBank) -> None:
    """Five examples of every expert and of general text, to a gate that learns from examples."""
    for choice, name in enumerate(("general", *bank.names)):
        generator = torch.Generator().manual_seed(149 if name == "general" else 50 + int(name[1:]))
        choices = torch.full((5,), choice)
        if isinstance(gate, ExampleGate):
            gate.see(pooled(gate, torch.randn(5, TOKENS, WIDTH, generator=generator)), choices)
        if isinstance(gate, DetectorGate):
            inside = torch.ones(5, TOKENS, dtype=torch.bool)
            gate.note(reached(gate, torch.randn(5, TOKENS, WIDTH, generator=generator)), inside, choices)
        if isinstance(gate, SiteExampleGate):
            for site, (width, _) in SITES.items():
                x = torch.randn(5, TOKENS, width, generator=generator)
                gate.see(site, gate.pool.on_prompt(gate(site, x), torch.ones(5, TOKENS, dtype=torch.bool)), choices)
    if isinstance(gate, DetectorGate):
        gate.fit()


def reached(gate: ContextGate, hidden: Tensor) -> Tensor:
    """With the tokens before the text that the gate asks for."""
    return torch.cat([hidden.new_zeros(hidden.shape[0], gate.reach, hidden.shape[2]), hidden], dim=1)


def pooled(gate: ContextGate, hidden: Tensor) -> Tensor:
    prompt = torch.arange(hidden.shape[1]).expand(hidden.shape[:2]) < 4
    return gate.pool.on_prompt(gate.read(reached(gate, hidden)), prompt)


def scores(gate: Gate, size: float = 1.0, task: int = 1) -> list[Tensor]:
    """One tensor a site, or one in all for a context gate: of row 0 no expert is known to be true, of row 1 `task`."""
    generator = torch.Generator().manual_seed(1)
    if isinstance(gate, SiteGate):
        widths = [width for width, _ in SITES.values()]
        inputs = [torch.randn(3, TOKENS, width, generator=generator) * size for width in widths]
        return [gate.score(site, gate(site, x)) for site, x in zip(SITES, inputs, strict=True)]
    hidden = torch.randn(3, TOKENS, WIDTH, generator=generator) * size
    return [gate.score(pooled(gate, hidden), torch.tensor([0, task, -1]))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
class TestGate:
    def test_scores_every_choice_of_every_row(self, file):
        gate = made(file)
        shapes = [(3, TOKENS, 9)] if isinstance(gate, SiteGate) else [(3, 1, 9), (3, 1, len(SITES), 9)]
        assert all(found.shape in shapes for found in scores(gate))

    def test_is_finite_on_huge_inputs(self, file):
        assert all(found.isfinite().all() for found in scores(made(file), size=1e4))

    def test_keeps_its_state_through_a_file(self, file):
        gate, other = made(file), made(file)
        for value in other.state_dict().values():
            value.zero_()
        other.load_state_dict(load(save({k: v.contiguous() for k, v in gate.state_dict().items()})))
        assert all(torch.equal(a, b) for a, b in zip(scores(gate), scores(other), strict=True))

    def test_sends_a_gradient_to_every_weight(self, file):
        gate = made(file).train()
        weights = [weight for weight in gate.parameters() if weight.requires_grad]
        if weights:
            sum(found.logsumexp(dim=-1).sum() for found in scores(gate)).backward()
        assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in weights)

    def test_reads_a_token_from_it_and_its_reach_alone(self, file):
        gate = made(file)
        if isinstance(gate, SiteGate):
            site = next(iter(SITES))
            x = torch.randn(2, 6, SITES[site][0])
            whole, reach = gate(site, x), 0
            alone = [gate(site, x[:, t : t + 1]) for t in range(6)]
        else:
            hidden, reach = torch.randn(2, 6 + gate.reach, WIDTH), gate.reach
            whole = gate.read(hidden)
            alone = [gate.read(hidden[:, t : t + 1 + reach]) for t in range(6)]
        assert whole.shape[1] == 6
        assert torch.allclose(whole, torch.cat(alone, dim=1), atol=1e-5)

    @pytest.mark.parametrize("granularity", ["token", "prefix", "prompt", "turn"])
    def test_decoding_with_a_cache_gives_what_one_pass_gives(self, file, llama, granularity):
        """In every granularity, with prompts of four tokens."""
        bank = bank_of()
        ids = torch.randint(0, 31, (3, 6), generator=torch.Generator().manual_seed(2))
        prompt = torch.arange(6).expand(3, 6) < 4
        gate, domain = made(file, bank, granularity=granularity), torch.tensor([0, 1, -1])
        with torch.no_grad(), attached(llama, bank, gate=gate, select=Softmax()) as routed:
            with routed.given(prompt=prompt, domain=domain):
                whole = llama(input_ids=ids, use_cache=False).logits
            with routed.given(domain=domain):
                out = llama(input_ids=ids[:, :4], use_cache=True)
                pieces = [out.logits]
                for t in (4, 5):
                    out = llama(input_ids=ids[:, t : t + 1], **{CACHE: cache_of(out)}, use_cache=True)
                    pieces.append(out.logits)
        assert torch.allclose(whole, torch.cat(pieces, dim=1), atol=1e-5)

    @pytest.mark.parametrize("granularity", ["token", "prefix", "prompt", "turn"])
    def test_a_barred_expert_is_an_absent_one(self, file, llama, granularity):
        """Of gates whose experts are independent; the others learnt their scores against one another."""
        some, bank = (1, 2, 4, 6, 7), bank_of()
        gate = made(file, bank, granularity=granularity)
        if gate.choice_rows is None:
            pytest.skip("what it learnt holds for all of its experts together")
        few = made(file, bank_of(some), granularity=granularity)
        rows = torch.tensor([0, *(number + 1 for number in some)])
        few.load_state_dict(
            {key: value[rows] if key in gate.choice_rows else value for key, value in gate.state_dict().items()}
        )
        ids = torch.randint(0, 31, (6, 9), generator=torch.Generator().manual_seed(2))
        prompt = torch.arange(9).expand(6, 9) < 7
        asked, names = {"prompt": prompt}, [f"e{number}" for number in some]
        with torch.no_grad():
            with attached(llama, bank, gate=gate, select=Softmax()) as routed, routed.given(**asked, active=[names]):
                barred = llama(input_ids=ids, use_cache=False).logits
            with attached(llama, bank_of(some), gate=few, select=Softmax()) as routed, routed.given(**asked):
                absent = llama(input_ids=ids, use_cache=False).logits
        assert torch.allclose(barred, absent, atol=1e-5)

    def test_a_turn_decides_for_its_answer(self, file, llama):
        """Turns of four and of two tokens, an answer of three after each."""
        bank = bank_of()
        ids = torch.randint(0, 31, (3, 12), generator=torch.Generator().manual_seed(2))
        prompt = torch.tensor([1, 1, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0]).bool().expand(3, 12)
        gate, seen = made(file, bank, granularity="turn"), []
        with (
            torch.no_grad(),
            attached(llama, bank, gate=gate, select=Softmax()) as routed,
            routed.given(prompt=prompt, domain=torch.tensor([0, 1, -1])),
            routed.observed(seen.append),
        ):
            llama(input_ids=ids, use_cache=False)
        for observation in seen:
            weights = observation.routing.dense()
            if weights.shape[1] == 1:
                continue  # all tokens decide alike
            for turn in (slice(0, 7), slice(7, 12)):
                assert torch.equal(weights[:, turn], weights[:, turn][:, :1].expand_as(weights[:, turn]))

    def test_permuting_the_experts_permutes_the_scores(self, file):
        gate, order = made(file), [3, 0, 7, 1, 6, 2, 5, 4]
        if list(gate.parameters()):
            pytest.skip("weights belong to the experts that they were trained for")
        choices = torch.tensor([0, *(number + 1 for number in order)])
        permuted = scores(made(file, bank_of(order)), task=1 + order.index(0))
        for before, after in zip(scores(gate, task=1), permuted, strict=True):
            assert torch.allclose(before[..., choices], after, atol=1e-5)

    def test_an_expert_20_times_larger_does_not_capture_everything(self, file):
        gate = made(file, bank_of(sizes=(1, 1, 1, 20, 1, 1, 1, 1)))
        if not isinstance(gate, FactorGate):
            pytest.skip("does not look at the factors")
        for found in scores(gate):
            assert (found.argmax(dim=-1) == 4).float().mean() < 0.5

    def test_takes_every_granularity_and_refuses_others(self, file):
        shape = made(file).shape
        for granularity in ("token", "prefix", "prompt", "turn"):
            assert made(file, granularity=granularity).granularity == granularity
        # In the test run, where annotations are checked, jaxtyping is the first to refuse.
        with pytest.raises((ConfigError, TypeCheckError), match="sentence"):
            build(settings(file) | {"granularity": "sentence"})(shape)

    def test_works_for_a_bank_of_one(self, file):
        assert all(found.shape[-1] == 2 and found.isfinite().all() for found in scores(made(file, bank_of((0,)))))
