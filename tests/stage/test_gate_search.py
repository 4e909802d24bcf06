"""The search finds planted weights with few passes, never leaves its bounds, and is the same every time."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pmemx.core.bank import ExpertBank
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.encoding import Encoded
from pmemx.core.errors import ConfigError
from pmemx.gate.lora_hub import LoraHubGate
from pmemx.lit.gate_module import Source
from pmemx.runtime.attach import attached
from pmemx.select.raw import Raw
from pmemx.stage.bank import load_gate, needs_training, save_gate
from pmemx.stage.gate_search import SearchSettings, few_examples, search

WIDTH, EXPERTS = 16, 8
PLANTED = torch.tensor([1.0, 0, 0, 0, 0, 0, -0.7, 0])
SITES = {"model.layers.0.mlp.up_proj": (16, 24), "model.layers.0.self_attn.v_proj": (16, 16)}


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    # Random models are nearly indifferent between tokens; this one means what it says.
    model.lm_head.weight.mul_(40)
    return model


@pytest.fixture(scope="module")
def bank() -> ExpertBank:
    """Ranks 1 to 4; experts 2 and 5 skip the second site."""
    blocks = []
    for number in range(EXPERTS):
        generator, rank = torch.Generator().manual_seed(number), 1 + number % 4
        factors = {
            site: LoraFactors(
                torch.randn(rank, width_in, generator=generator) / width_in**0.5,
                torch.randn(width_out, rank, generator=generator) / rank**0.5,
                scale=1.0,
            )
            for place, (site, (width_in, width_out)) in enumerate(SITES.items())
            if not (place and number % 3 == 2)
        }
        blocks.append(CapabilityBlock(BlockCard(name=f"e{number}", domain="d", base=""), factors))
    return ExpertBank(blocks)


@pytest.fixture(scope="module")
def examples(llama, bank) -> list[tuple[Encoded, int]]:
    """What the model with planted weights says after 32 random prompts of five tokens: rows of eight."""
    ids = torch.randint(3, 31, (32, 5), generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), attached(llama, bank, weights=PLANTED, mixing="before"):
        for _ in range(3):
            said = llama(input_ids=ids, use_cache=False).logits[:, -1].argmax(dim=-1)
            ids = torch.cat([ids, said[:, None]], dim=1)
    return [(Encoded(tuple(row), 5), 1 + number % EXPERTS) for number, row in enumerate(ids.tolist())]


class Seen:
    """Counts evaluations, and the largest number that was in the gate at each."""

    def __init__(self, gate: LoraHubGate) -> None:
        self.gate, self.steps = gate, 0
        self.largest: list[float] = []

    def __call__(self, steps: int = 1, note: str = "") -> None:
        self.steps += steps
        self.largest.append(float(self.gate.numbers().abs().max()))


def run(llama, bank, examples, batch_size=32, **settings) -> tuple[LoraHubGate, Seen, float]:
    gate = LoraHubGate(bank.shape(WIDTH)).eval()
    seen = Seen(gate)
    with attached(llama, bank, gate=gate, select=Raw(), mixing="before") as routed:
        loss = search(
            gate, routed, examples, pad=0, batch_size=batch_size, settings=SearchSettings(**settings), advance=seen
        )
    return gate, seen, loss


def nats(llama, bank, examples, weights: torch.Tensor) -> float:
    """Mean over answer tokens, row by row and without a gate."""
    total = []
    with torch.no_grad(), attached(llama, bank, weights=weights, mixing="before"):
        for row, _ in examples:
            ids = torch.tensor([row.ids])
            log_probs = llama(input_ids=ids).logits[0].log_softmax(dim=-1)
            total += [-log_probs[t - 1, ids[0, t]] for t in range(row.prompt_length, len(row.ids))]
    return float(torch.stack(total).mean())


def test_finds_planted_weights_within_the_40_evaluations_of_the_paper(llama, bank, examples):
    """One of them negative."""
    zero, planted = nats(llama, bank, examples, torch.zeros(EXPERTS)), nats(llama, bank, examples, PLANTED)
    gate, _, _ = run(llama, bank, examples)
    found = gate.numbers()
    assert (zero - nats(llama, bank, examples, found)) / (zero - planted) > 0.95
    assert (found - PLANTED).abs().max() < 0.3 and torch.cosine_similarity(found, PLANTED, dim=0) > 0.95


def test_the_loss_is_nats_a_token_and_the_penalty_in_any_batches(llama, bank, examples):
    for batch_size in (7, 64):
        gate, _, loss = run(llama, bank, examples, batch_size=batch_size, evaluations=4)
        expected = nats(llama, bank, examples, gate.numbers()) + 0.05 * float(gate.numbers().abs().mean())
        assert loss == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("evaluations", [1, 5, 20])
def test_looks_as_often_as_it_was_told_and_never_outside_the_bounds(llama, bank, examples, evaluations):
    """Five evaluations are fewer than there are numbers."""
    gate, seen, _ = run(llama, bank, examples, evaluations=evaluations, bound=0.5, step=0.5)
    assert seen.steps == evaluations
    assert max(seen.largest) <= 0.5 and gate.numbers().abs().max() <= 0.5
    if evaluations == 1:
        assert gate.numbers().eq(0).all()


def test_the_same_examples_give_the_same_numbers(llama, bank, examples):
    first, second = (run(llama, bank, examples, evaluations=8) for _ in range(2))
    assert torch.equal(first[0].numbers(), second[0].numbers()) and first[2] == second[2]


def test_never_ends_worse_than_it_began(llama, bank, examples):
    """Labels of the base model itself: no weights are best."""
    told = []
    with torch.no_grad():
        for row, choice in examples:
            said = llama(input_ids=torch.tensor([row.ids[:5]])).logits[0, -1].argmax()
            told.append((Encoded((*row.ids[:5], int(said)), 5), choice))
    gate, _, loss = run(llama, bank, told, evaluations=12)
    assert loss <= nats(llama, bank, told, torch.zeros(EXPERTS)) + 1e-6
    assert nats(llama, bank, told, gate.numbers()) + 0.05 * float(gate.numbers().abs().mean()) == pytest.approx(loss)


def test_a_penalty_beyond_reason_leaves_the_base_model(llama, bank, examples):
    gate, _, _ = run(llama, bank, examples, penalty=1e4, evaluations=12)
    assert gate.numbers().eq(0).all()


class TestExamples:
    rows = tuple(Encoded((number, number, 30), 2) for number in range(20))

    def test_are_a_few_different_rows_of_every_source_in_the_batches(self):
        sources = [
            Source(self.rows, 1, per_batch=4),
            Source(self.rows[:3], 2, per_batch=4),
            Source(self.rows, 3, per_batch=0),
            Source(self.rows, 0, per_batch=4, speaks=False),
        ]
        drawn = few_examples(sources, 5, torch.Generator().manual_seed(0))
        assert [choice for _, choice in drawn] == [1] * 5 + [2] * 3
        assert len({row for row, _ in drawn[:5]}) == 5
        assert drawn == few_examples(sources, 5, torch.Generator().manual_seed(0))
        assert drawn != few_examples(sources, 5, torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluations": 0}, r"search\.evaluations = 0"),
        ({"per_domain": 0}, r"search\.per_domain = 0"),
        ({"penalty": -1.0}, r"search\.penalty = -1\.0"),
        ({"step": 2.0}, r"search\.step = 2\.0 must be positive and at most search\.bound = 1\.5"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        SearchSettings(**settings)


def test_a_searched_gate_needs_training_and_comes_back_from_its_file(bank, tmp_path):
    gate = LoraHubGate(bank.shape(WIDTH))
    assert needs_training(gate)
    with pytest.raises(ConfigError, match="not trained in this run"):
        load_gate(LoraHubGate, bank.shape(WIDTH), tmp_path, "gate")
    gate.numbers().copy_(PLANTED)
    save_gate(gate, tmp_path, "gate")
    loaded = load_gate(LoraHubGate, bank.shape(WIDTH), tmp_path, "gate")
    assert isinstance(loaded, LoraHubGate) and torch.equal(loaded.numbers(), PLANTED)
