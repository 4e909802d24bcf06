"""Tracking learns every expert alone, so that a later one changes no number of the others, and follows a text causally."""

import math
from collections.abc import Sequence

import numpy
import pytest
import torch
from kv_cache import CACHE, cache_of
from scipy.optimize import minimize
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from pmemx.core.bank import BankShape, ExpertBank
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.errors import ConfigError
from pmemx.core.grown import grown
from pmemx.gate.tracking import TrackingGate
from pmemx.runtime.attach import attached
from pmemx.select.top_k import TopK
from pmemx.stage.bank import load_gate, save_gate

WIDTH, VOCAB = 16, 48
SITES = {"model.layers.0.mlp.up_proj": 16}
NAMES = tuple(f"e{number}" for number in range(8))
ROWS = 36
"""Examples of a name: of fewer, most phrases of a new text are new, and novelty says little."""
TABLE = torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(9))


def texts(name: str, rows: int = ROWS, length: int = 7, seed: int = 0) -> Tensor:
    """Token ids: two thirds from four tokens of the name's own ("none" has some, too), one third from twelve that all share."""
    number = 0 if name == "none" else 1 + int(name[1:])
    generator = torch.Generator().manual_seed(100 * seed + number)
    own = torch.randint(4 * number, 4 * number + 4, (rows, length), generator=generator)
    shared = torch.randint(36, VOCAB, (rows, length), generator=generator)
    return torch.where(torch.rand(rows, length, generator=generator) < 0.67, own, shared)


def states(gate: TrackingGate, ids: Tensor) -> Tensor:
    """What the gate reads of them: embeddings, and nothing before the text."""
    return torch.cat([torch.zeros(len(ids), gate.reach, WIDTH), TABLE[ids]], dim=1)


def note(gate: TrackingGate, ids: Tensor, choice: int) -> None:
    inside = torch.ones(ids.shape, dtype=torch.bool)
    gate.note(states(gate, ids), inside, torch.full((len(ids),), choice))


def shape(names: Sequence[str]) -> BankShape:
    return BankShape(tuple(names), SITES, WIDTH)


def learn(gate: TrackingGate, names: Sequence[str]) -> TrackingGate:
    for name in names:
        note(gate, texts(name), 0 if name == "none" else 1 + gate.shape.experts.index(name))
    gate.fit()
    return gate


def taught(names: Sequence[str] = NAMES, **settings) -> TrackingGate:
    return learn(TrackingGate(shape(names), **settings), ["none", *names])


def scores(gate: TrackingGate, ids: Tensor) -> Tensor:
    """By token, on the prefix so far."""
    said = gate.read(states(gate, ids))
    return gate.score(gate.pool.on_prefix(said, torch.ones(ids.shape, dtype=torch.bool), None)[0], None)


@pytest.fixture(scope="module")
def gate() -> TrackingGate:
    return taught()


ORDER = ("e0", "e7", *NAMES[1:7])
"""Of a bank that e7 joined, in the slot of an expert that had left."""


@pytest.fixture(scope="module")
def old() -> TrackingGate:
    return taught(NAMES[:7])


@pytest.fixture(scope="module")
def larger(old) -> TrackingGate:
    """Has seen the examples of e7 alone since it grew."""
    return learn(grown(old, TrackingGate(shape(ORDER))), ["e7"])


class TestGrowth:
    def test_a_later_expert_leaves_every_number_of_the_others_as_it_is(self, old, larger):
        places = [0, *(1 + ORDER.index(name) for name in NAMES[:7])]
        before, after = old.state_dict(), larger.state_dict()
        assert before.keys() == after.keys()
        for key, value in before.items():
            found = after[key][places] if key in TrackingGate.choice_rows else after[key]
            assert torch.equal(found, value), key
        ids = texts("e3", seed=1)
        assert torch.equal(larger.read(states(larger, ids))[..., places], old.read(states(old, ids)))

    def test_it_is_the_gate_that_learnt_all_at_once(self, larger):
        for key, value in taught(ORDER).state_dict().items():
            assert torch.equal(value, larger.state_dict()[key]), key

    def test_scores_of_the_others_change_by_the_prior_alone(self, old, larger):
        """Of eight experts each has 7/8 of the prior that each of seven has."""
        ids = texts("e3", seed=1, length=1)
        places = [1 + ORDER.index(name) for name in NAMES[:7]]
        before, after = scores(old, ids), scores(larger, ids)
        spoken = old.read(states(old, ids)).any(dim=-1)
        assert spoken.sum() > 5
        against_none = after[..., places] - after[..., :1], before[..., 1:] - before[..., :1]
        moved = torch.tensor(7 / 8).log()
        assert torch.allclose(against_none[0][spoken], against_none[1][spoken] + moved, atol=1e-5)

    def test_texts_are_known_as_before_and_those_of_the_new_expert_too(self, larger):
        for name in NAMES:
            found = scores(larger, texts(name, seed=1))[:, -1].argmax(dim=-1)
            assert (found == 1 + ORDER.index(name)).float().mean() >= 0.9, name

    def test_until_it_is_shown_the_new_expert_it_is_refused_by_name(self, old):
        unready = grown(old, TrackingGate(shape(ORDER)))
        with pytest.raises(ConfigError, match="no detector of e7; show it prompts of every expert and of no expert"):
            scores(unready, texts("e3"))


class TestLearning:
    def test_the_order_of_examples_and_their_batches_do_not_matter(self, gate):
        other = TrackingGate(shape(NAMES))
        rows = [(ids, choice) for choice, name in enumerate(("none", *NAMES)) for ids in texts(name)]
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(4)).tolist()
        for start in range(0, len(order), 5):
            ids, choices = zip(*(rows[place] for place in order[start : start + 5]), strict=True)
            batch = torch.stack(ids)
            other.note(states(other, batch), torch.ones(batch.shape, dtype=torch.bool), torch.tensor(choices))
        other.fit()
        for key, value in gate.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), key

    def test_examples_of_no_expert_may_come_in_two_parts(self, gate):
        other = TrackingGate(shape(NAMES))
        background = texts("none")
        for part in (background[7:], background[:7]):
            note(other, part, 0)
            other.fit()
        assert not other.get_buffer("learnt").any() and not other.get_buffer("evidence").any()
        learn(other, NAMES)
        for key, value in gate.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), key

    def test_padding_is_no_example(self, gate):
        other, garbage = TrackingGate(shape(NAMES)), torch.randint(0, VOCAB, (ROWS, 3))
        for choice, name in enumerate(("none", *NAMES)):
            padded = torch.cat([texts(name), garbage], dim=1)
            other.note(states(other, padded), torch.arange(10).expand(ROWS, -1) < 7, torch.full((ROWS,), choice))
        other.fit()
        assert torch.equal(other.get_buffer("evidence"), gate.get_buffer("evidence"))

    @pytest.mark.parametrize(("l2", "likelihood"), [(0.12, 0.0), (0.12, 0.3), (0.0012, 0.1)])
    def test_weights_are_those_of_a_logistic_regression_by_scipy(self, l2, likelihood):
        """Drawn to weights of naive Bayes, with a penalty over twelve examples of no expert."""
        found = taught(l2=l2, likelihood=likelihood, novelty=0.0)
        own, others = (found.phrases(states(found, texts(name))).flatten(1) for name in ("e2", "none"))
        used = torch.cat([own, others]).unique()
        counts = numpy.stack([(row[:, None] == used).sum(dim=0).double().numpy() for row in [*own, *others]])
        sign = numpy.repeat([1.0, -1.0], ROWS)
        of_own, of_others = counts[:ROWS].sum(axis=0), counts[ROWS:].sum(axis=0)
        ratio = numpy.log((of_own + 0.1) / (of_own.sum() + 0.1 * found.buckets))
        centre = likelihood * (ratio - numpy.log((of_others + 0.1) / (of_others.sum() + 0.1 * found.buckets)))

        def loss(weights):
            margin, off = sign * (counts @ weights), weights - centre
            value = numpy.logaddexp(0, -margin).mean() + l2 / ROWS * (off**2).sum()
            pull = -sign / (1 + numpy.exp(margin)) / (2 * ROWS)
            return value, counts.T @ pull + 2 * l2 / ROWS * off

        best = minimize(loss, centre, jac=True, method="BFGS", options={"gtol": 1e-10, "maxiter": 5000})
        weights = found.get_buffer("evidence")[3]
        assert numpy.abs(weights[used].numpy() - best.x).max() < 1e-4
        assert numpy.abs(best.x).max() > 0.1
        unused = torch.ones(len(weights), dtype=torch.bool)
        unused[used] = False
        assert not weights[unused].any() and not found.get_buffer("evidence")[0].any()

    def test_unequal_numbers_of_examples_weigh_alike(self):
        """Each class has half of the weight: showing all background twice changes nothing but the strength of the penalty."""
        once, twice = (TrackingGate(shape(["e0"]), l2=l2, likelihood=0.0, novelty=0.0) for l2 in (0.02, 0.04))
        for gate, times in ((once, 1), (twice, 2)):
            for _ in range(times):
                note(gate, texts("none"), 0)
            learn(gate, ["e0"])
        assert torch.allclose(once.get_buffer("evidence"), twice.get_buffer("evidence"), atol=1e-4)

    def test_without_background_it_refuses_and_forgets_nothing(self):
        gate = TrackingGate(shape(["e0"]))
        note(gate, texts("e0"), 1)
        with pytest.raises(
            ConfigError, match="against no expert, of which there is no example; note some with choice 0"
        ):
            gate.fit()
        note(gate, texts("none"), 0)
        gate.fit()
        assert torch.equal(gate.get_buffer("evidence"), taught(["e0"]).get_buffer("evidence"))

    def test_a_phrase_that_no_example_holds_speaks_against_the_expert_by_its_rate_of_such_phrases(self):
        """By hand, single tokens: of the six in e0's examples two are in one of them alone; of the four of none three are new.

        Novelty adds log((2 + 1) / (6 + 2) / ((3 + 1) / (4 + 2))) = log(9 / 16) where no example of e0 holds the phrase.
        """
        settings = {"window": 1, "l2": 0.5, "likelihood": 0.0}
        plain, wary = (TrackingGate(shape(["e0"]), novelty=novelty, **settings) for novelty in (0.0, 1.0))
        for gate in (plain, wary):
            note(gate, torch.tensor([[1, 2, 3], [1, 2, 4]]), 1)
            note(gate, torch.tensor([[1, 7], [8, 9]]), 0)
            gate.fit()
        added = (wary.get_buffer("evidence") - plain.get_buffer("evidence"))[1]
        held = plain.phrases(states(plain, torch.tensor([[1, 2, 3, 4]]))).flatten()
        expected = torch.full_like(added, math.log(9 / 16))
        expected[held] = 0
        assert torch.allclose(added, expected, atol=1e-6)

    def test_text_unlike_all_examples_goes_to_no_expert_though_nothing_like_it_was_shown(self):
        """Of tokens that neither e0 to e6 nor the background hold, and some that all share."""
        strange = texts("e7", rows=60, length=12, seed=5)
        wary, plain = taught(NAMES[:7], novelty=0.3), taught(NAMES[:7])
        to_none = [scores(gate, strange)[:, -1, 0].exp().mean() for gate in (wary, plain)]
        assert to_none[0] >= 0.95 and to_none[1] <= 0.6


class TestDecision:
    def test_unseen_text_like_the_background_goes_to_no_expert(self, gate):
        found = scores(gate, texts("none", rows=40, length=12, seed=2))[:, -1]
        assert (found.argmax(dim=-1) == 0).float().mean() >= 0.9

    def test_unseen_text_of_an_expert_goes_to_it(self, gate):
        for choice, name in enumerate(NAMES, start=1):
            found = scores(gate, texts(name, rows=40, length=12, seed=2))[:, -1]
            assert (found.argmax(dim=-1) == choice).float().mean() >= 0.9, name

    def test_it_follows_a_text_from_one_expert_to_another(self):
        gate = taught(hold=8.0, l2=0.0036)
        first, second = texts("e1", length=20, seed=3), texts("e5", length=20, seed=3)
        found = scores(gate, torch.cat([first, second], dim=1)).argmax(dim=-1)
        assert (found[:, 19] == 2).all() and (found[:, 39] == 6).all()
        # It takes few tokens, and fewer than the evidence against it lasted.
        assert (found[:, 28] == 6).float().mean() >= 0.9

    def test_a_later_token_changes_no_earlier_score(self, gate):
        ids = texts("e1", length=14)
        changed = ids.clone()
        changed[:, 9:] = texts("e4", length=5)
        before, after = scores(gate, ids), scores(gate, changed)
        assert torch.equal(before[:, :9], after[:, :9])
        assert not torch.equal(before[:, 9:], after[:, 9:])


class TestPhrases:
    def test_the_same_two_tokens_are_the_same_phrases_wherever_they_stand(self, gate):
        found = gate.phrases(states(gate, torch.tensor([[5, 9, 3, 17], [1, 1, 5, 9]])))
        assert found.shape == (2, 4, 2)
        assert torch.equal(found[0, 1], found[1, 3])
        assert found[0, 0, 0] == found[1, 2, 0] and found[0, 0, 1] != found[1, 2, 1]

    def test_their_order_matters(self, gate):
        found = gate.phrases(states(gate, torch.tensor([[5, 9], [9, 5]])))
        assert found[0, 1, 1] != found[1, 1, 1]

    def test_what_stands_before_the_text_is_what_padding_is(self, gate):
        """A row that begins at once, and one after three tokens of padding, which are zero to the gate."""
        ids = torch.tensor([[5, 9, 3]])
        hidden = torch.cat([torch.zeros(1, 3, WIDTH), states(gate, ids)], dim=1)
        assert torch.equal(gate.phrases(hidden)[:, 3:], gate.phrases(states(gate, ids)))

    def test_distinct_phrases_hardly_ever_meet(self):
        """Of 2,025 pairs of tokens two are expected to in 2^20 buckets: 2025^2 / 2 / 2^20."""
        gate = TrackingGate(shape(["e0"]), buckets=2**20)
        pairs = torch.cartesian_prod(torch.arange(45), torch.arange(45))
        found = gate.phrases(states(gate, pairs))[:, 1, 1]
        assert len(found.unique()) >= 2025 - 8
        assert int(found.min()) >= 0 and int(found.max()) < 2**20


class TestFile:
    def test_gives_back_what_it_says_and_what_it_needs_to_learn_more(self, tmp_path):
        old = taught(NAMES[:7])
        save_gate(old, tmp_path, "gate")
        loaded = load_gate(TrackingGate, shape(NAMES[:7]), tmp_path, "gate")
        assert isinstance(loaded, TrackingGate)
        assert loaded.get_buffer("background_lengths").tolist() == [14] * ROWS
        assert loaded.get_buffer("background").shape == (ROWS * 14,)
        ids = texts("e2", seed=1)
        assert torch.equal(scores(loaded, ids), scores(old, ids))
        more = learn(grown(loaded, TrackingGate(shape(NAMES))), ["e7"])
        for key, value in taught().state_dict().items():
            assert torch.equal(value, more.state_dict()[key]), key


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, r"gate\.window = 0 is outside 1\.\.8"),
        ({"bits": 49}, r"gate\.bits = 49 is outside 1\.\.48"),
        ({"buckets": 0}, r"gate\.buckets = 0 is outside"),
        ({"l2": 0.0}, r"gate\.l2 = 0\.0 must be positive"),
        ({"hold": 0.0}, r"hold = 0\.0 tokens"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        TrackingGate(shape(NAMES), **settings)


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        initializer_range=0.3, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    model.model.embed_tokens.weight.copy_(TABLE)
    return model


@pytest.fixture(scope="module")
def bank() -> ExpertBank:
    blocks = []
    for number, name in enumerate(NAMES):
        generator, rank = torch.Generator().manual_seed(number), 1 + number % 4
        A, B = torch.randn(rank, 16, generator=generator), torch.randn(24, rank, generator=generator)
        blocks.append(CapabilityBlock(BlockCard(name, "d", ""), {next(iter(SITES)): LoraFactors(A, B, 0.5)}))
    return ExpertBank(blocks)


@pytest.fixture(scope="module")
def ids() -> Tensor:
    """Row by row: none then e1, e4 then e6, e2 then none."""
    first = torch.cat([texts(name, 1, 9, seed=5) for name in ("none", "e4", "e2")])
    second = torch.cat([texts(name, 1, 8, seed=7) for name in ("e1", "e6", "none")])
    return torch.cat([first, second], dim=1)


class TestInAModel:
    """Two turns of the user in a row, of different experts, each with an answer: 6 + 3 + 5 + 3 tokens."""

    PROMPT = torch.tensor([1] * 6 + [0] * 3 + [1] * 5 + [0] * 3).bool().expand(3, -1)

    def decisions(self, llama, bank, gate, ids) -> Tensor:
        with attached(llama, bank, gate=gate, select=TopK()) as routed, routed.given(prompt=self.PROMPT):
            return routed.decide(ids, torch.ones_like(ids))

    def logits(self, llama, bank, gate, ids) -> Tensor:
        with attached(llama, bank, gate=gate, select=TopK()) as routed, routed.given(prompt=self.PROMPT):
            return llama(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits

    def test_a_turn_is_decided_at_its_end_and_the_next_one_anew(self, llama, bank, gate, ids):
        found = self.decisions(llama, bank, gate, ids)
        for start, end in ((0, 6), (9, 14)):
            assert torch.equal(found[:, start:end], found[:, end - 1 : end].expand(-1, end - start, -1))
        chosen = found.argmax(dim=-1)
        assert chosen[:, 0].tolist() == [0, 5, 3] and chosen[:, 9].tolist() == [2, 7, 0]

    def test_what_follows_a_turn_changes_nothing_at_or_before_its_end(self, llama, bank, gate, ids):
        changed = ids.clone()
        changed[:, 9:] = texts("e0", 3, 8)
        before, after = (self.decisions(llama, bank, gate, tokens) for tokens in (ids, changed))
        assert torch.equal(before[:, :9], after[:, :9]) and not torch.equal(before[:, 9], after[:, 9])
        before, after = (self.logits(llama, bank, gate, tokens) for tokens in (ids, changed))
        assert torch.equal(before[:, :9], after[:, :9])
        # But within a turn the end is known from the start: it was there before anything was asked for.
        changed = ids.clone()
        changed[:, 4:6] = texts("e0", 3, 2)
        before, after = (self.decisions(llama, bank, gate, tokens) for tokens in (ids, changed))
        assert not torch.equal(before[:, 0], after[:, 0])

    def test_on_prefixes_a_change_of_later_tokens_changes_no_earlier_score(self, llama, bank, ids):
        gate = taught(granularity="prefix")
        changed = ids.clone()
        changed[:, 4:] = texts("e0", 3, 13)
        before, after = (self.decisions(llama, bank, gate, tokens) for tokens in (ids, changed))
        assert torch.equal(before[:, :4], after[:, :4]) and not torch.equal(before[:, 4:], after[:, 4:])

    def test_answering_turn_by_turn_with_a_cache_gives_what_one_pass_gives(self, llama, bank, gate, ids):
        whole = self.logits(llama, bank, gate, ids)
        pieces, cache = [], None
        with torch.no_grad(), attached(llama, bank, gate=gate, select=TopK()) as routed:
            for start, end in ((0, 6), (6, 7), (7, 8), (8, 9), (9, 14), (14, 15), (15, 16), (16, 17)):
                with routed.given(prompt=self.PROMPT[:, start:end] if end - start > 1 else None):
                    out = llama(input_ids=ids[:, start:end], **{CACHE: cache}, use_cache=True)
                pieces.append(out.logits)
                cache = cache_of(out)
        assert torch.allclose(torch.cat(pieces, dim=1), whole, atol=1e-5)

    def test_generate_continues_a_cache_with_another_turn(self, llama, bank, gate, ids):
        """The last token of an answer is not in the cache yet: it begins the pass that reads the next turn."""
        asked = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
        with attached(llama, bank, gate=gate, select=TopK()) as routed:
            with routed.given(prompt=self.PROMPT[:, :6]):
                mask = torch.ones(3, 6, dtype=torch.long)
                first = llama.generate(input_ids=ids[:, :6], attention_mask=mask, **asked)
            text = torch.cat([first.sequences, ids[:, 9:14]], dim=1)
            with routed.given(prompt=self.PROMPT[:, 8:14]):
                mask = torch.ones_like(text)
                second = llama.generate(input_ids=text, attention_mask=mask, **{CACHE: cache_of(first)}, **asked)
        said = second.sequences
        greedy = self.logits(llama, bank, gate, said).argmax(dim=-1)
        assert torch.equal(said[:, 6:9], greedy[:, 5:8]) and torch.equal(said[:, 14:], greedy[:, 13:16])
