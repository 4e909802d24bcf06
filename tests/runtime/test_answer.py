"""Every generated answer says which versions of which blocks produced it, and how much each had to say."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from tiny_models import WIDTH, block, tiny_llama, trained_like

from pmemx.core.bank import ExpertBank
from pmemx.core.canonical import canonical_json, digest
from pmemx.core.digest import fingerprint
from pmemx.core.encoding import Encoded
from pmemx.core.errors import PmemxError
from pmemx.core.profile import Profile
from pmemx.core.provenance import Share
from pmemx.core.trace import RoutingTrace
from pmemx.gate.arrow import ArrowGate
from pmemx.gate.linear import LinearGate
from pmemx.gate.oracle import OracleGate
from pmemx.gate.sequence import SequenceGate
from pmemx.gate.uniform import UniformGate
from pmemx.gate.xlora import XLoraGate
from pmemx.runtime.answer import answers, gate_digest
from pmemx.runtime.attach import attached
from pmemx.runtime.generate import generate
from pmemx.runtime.lock import SharedLock
from pmemx.select.sample import Sample
from pmemx.select.softmax import Softmax
from pmemx.select.top_k import TopK

ENDLESS = SimpleNamespace(eos_token_id=None, pad_token_id=0)
VERSIONS = [f"{number:x}" * 64 for number in range(8)]
GATES = {
    "token by site": lambda shape: LinearGate(shape, granularity="token"),
    "token by layer": lambda shape: LinearGate(shape, granularity="token", level="layer"),
    "running vote of the model": lambda shape: LinearGate(shape, granularity="prefix", level="model"),
    "prompt by site": lambda shape: LinearGate(shape, granularity="prompt"),
    "second cache": XLoraGate,
    "sequence": SequenceGate,
    "arrow": ArrowGate,
}
SELECTIONS = {"top-1": TopK(), "top-2": TopK(k=2), "softmax": Softmax(), "drawn": Sample(k=2)}


@pytest.fixture
def bank(blocks):
    """Eight distinct experts with versions."""
    return ExpertBank(blocks, versions=VERSIONS)


@pytest.fixture
def prompts(ids):
    """Of four lengths, one of them with a part that is no prompt."""
    rows = [tuple(row.tolist()) for row in ids]
    return [Encoded(rows[0], 9), Encoded(rows[1], 4), Encoded(rows[2][:6], 6), Encoded(rows[3][:1], 1)]


def ended_by(model, prompts):
    """A tokenizer whose end token some answers of the base reach soon, and others late or never."""
    said = generate(model, ENDLESS, prompts, max_new_tokens=8)
    lengths = {token: [row.index(token) if token in row else 8 for row in said] for row in said for token in row}
    end = max(lengths, key=lambda token: (len(set(lengths[token])), -token))
    assert len(set(lengths[end])) > 1
    return SimpleNamespace(eos_token_id=end, pad_token_id=0)


def shares(**weights: float) -> tuple[Share, ...]:
    """By number of the expert: e3=0.5."""
    return tuple(Share(f"expert-{name[1:]}", VERSIONS[int(name[1:])], weight) for name, weight in weights.items())


def of(routed, prompts, tokenizer=ENDLESS, **how):
    return answers(routed, tokenizer, prompts, **({"max_new_tokens": 5} | how))


# --------------------------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize(
    ("name", "select"),
    [*((name, "top-2") for name in GATES), *(("token by site", select) for select in SELECTIONS if select != "top-2")],
)
def test_tokens_are_those_of_generate_and_weights_with_no_expert_sum_to_one(llama, bank, prompts, name, select):
    gate = trained_like(GATES[name](bank.shape(WIDTH)))
    with attached(llama, bank, gate=gate, select=SELECTIONS[select]) as routed:
        tokenizer = ended_by(llama, prompts)
        found = of(routed, prompts, tokenizer, max_new_tokens=8)
        assert [one.ids for one in found] == generate(llama, tokenizer, prompts, max_new_tokens=8)
    for one in found:
        weights = [share.weight for share in one.provenance.shares]
        assert sum(weights) + one.provenance.nothing == pytest.approx(1, abs=1e-5)
        assert all(0 < weight <= 1 for weight in weights)
    assert len({one.provenance.id for one in found}) == 4


@pytest.mark.parametrize("name", GATES)
def test_a_row_of_a_mixed_batch_has_the_provenance_that_it_has_alone(llama, bank, prompts, name):
    gate = trained_like(GATES[name](bank.shape(WIDTH)))
    with attached(llama, bank, gate=gate, select=TopK(k=2)) as routed:
        tokenizer = ended_by(llama, prompts)
        together = of(routed, prompts, tokenizer, max_new_tokens=8)
        apart = of(routed, prompts, tokenizer, max_new_tokens=8, batch_size=1)
    assert len({len(one.ids) for one in together}) > 1
    for one, other in zip(together, apart, strict=True):
        assert one.ids == other.ids
        assert [s.block for s in one.provenance.shares] == [s.block for s in other.provenance.shares]
        assert [s.weight for s in one.provenance.shares] == pytest.approx(
            [s.weight for s in other.provenance.shares], abs=1e-5
        )
        for fact in ("base", "gate", "selection", "prompt", "answer"):
            assert getattr(one.provenance, fact) == getattr(other.provenance, fact)


@pytest.mark.parametrize("name", GATES)
def test_weights_are_those_of_the_routing_trace_over_prompt_and_answer(llama, bank, prompts, name):
    """An independent reference: a trace of the same passes, which clamps and averages by itself."""
    gate = trained_like(GATES[name](bank.shape(WIDTH)))
    trace = RoutingTrace(bank.slot_names)
    with attached(llama, bank, gate=gate, select=Softmax()) as routed, routed.observed(trace):
        (one,) = of(routed, prompts[1:2])
    load = (trace.load * trace.decisions[:, None]).sum(dim=0) / trace.decisions.sum()
    found = {share.block: share.weight for share in one.provenance.shares}
    assert [found.get(name, 0.0) for name in bank.names] == pytest.approx(load[1:].tolist(), abs=2e-6)
    assert one.provenance.nothing == pytest.approx(load[0].item(), abs=1e-5)
    # Four tokens of the prompt and the first four of the answer; the fifth was said, not read.
    by_token = gate.granularity != "prompt"
    assert trace.decisions.tolist() == [8 if by_token else 5] * len(bank.site_names)


def test_provenance_costs_no_pass(llama, bank, prompts):
    passes = []
    gate = trained_like(LinearGate(bank.shape(WIDTH), granularity="token"))
    with attached(llama, bank, gate=gate, select=TopK()) as routed:
        handle = llama.model.layers[0].register_forward_pre_hook(lambda module, args: passes.append(args[0].shape[1]))
        generate(llama, ENDLESS, prompts, max_new_tokens=5)
        plain = [*passes]
        passes.clear()
        of(routed, prompts)
        handle.remove()
    assert passes == plain == [9, 1, 1, 1, 1]


def test_drawn_answers_are_those_of_generate_from_the_same_seed(llama, bank, prompts):
    gate = trained_like(SequenceGate(bank.shape(WIDTH)))
    how = {"max_new_tokens": 6, "sample": True, "batch_size": 3}
    with attached(llama, bank, gate=gate, select=TopK()) as routed:
        for seed in (0, 1):
            assert [one.ids for one in answers(routed, ENDLESS, prompts, seed=seed, **how)] == generate(
                llama, ENDLESS, prompts, seed=seed, **how
            )
        one, other = (answers(routed, ENDLESS, prompts, seed=seed, **how)[0] for seed in (0, 1))
    assert one.ids != other.ids and one.provenance.id != other.provenance.id
    assert one.provenance.shares == other.provenance.shares


def test_no_prompts_have_no_answers(llama, bank):
    with attached(llama, bank) as routed:
        assert of(routed, []) == []


# ------------------------------------------------------------------------------------------------------------- by hand


def test_an_oracle_names_the_one_expert_of_each_row_by_hand(llama, bank, prompts):
    gate = OracleGate(bank.shape(WIDTH))
    domain = torch.tensor([3, 0, 8, -1])
    with attached(llama, bank, gate=gate, select=TopK()) as routed, routed.given(domain=domain):
        found = [one.provenance for one in of(routed, prompts)]
    assert [one.shares for one in found] == [shares(e2=1.0), (), shares(e7=1.0), ()]
    assert [one.nothing for one in found] == [0.0, 1.0, 0.0, 1.0]
    assert {one.gate for one in found} == {gate_digest(gate)}
    assert {one.selection for one in found} == {canonical_json(TopK())}
    assert {one.base for one in found} == {fingerprint(llama)}
    assert [one.prompt for one in found] == [digest(row.ids[: row.prompt_length]) for row in prompts]


def test_a_uniform_gate_gives_every_expert_its_eighth_by_hand(llama, bank, prompts):
    gate = UniformGate(bank.shape(WIDTH))
    with attached(llama, bank, gate=gate, select=Softmax()) as routed:
        assert of(routed, prompts)[0].provenance.shares == shares(**{f"e{n}": 0.125 for n in range(8)})
        with routed.given(active=[["expert-1", "expert-4"], None, [], ["expert-6"]]):
            found = [one.provenance for one in of(routed, prompts)]
    assert found[0].shares == shares(e1=0.5, e4=0.5)
    assert len(found[1].shares) == 8
    assert (found[2].shares, found[2].nothing) == ((), 1.0)
    assert found[3].shares == shares(e6=1.0)


def test_half_of_a_gate_that_abstains_is_no_expert_by_hand(llama, bank, prompts):
    gate = UniformGate(bank.shape(WIDTH), abstain=0.5, granularity="token")
    with attached(llama, bank, gate=gate, select=Softmax()) as routed:
        one = of(routed, prompts)[0].provenance
    assert one.shares == shares(**{f"e{n}": 0.0625 for n in range(8)}) and one.nothing == 0.5


class ByToken(LinearGate):
    """Expert n where the first number that a site reads is positive, else no expert; known before by the test's hook."""

    def forward(self, site, x):
        scores = x.new_full((*x.shape[:2], self.shape.num_choices), -1e6)
        positive = x[..., 0] > 0
        scores[..., 3] = torch.where(positive, 1e6, -1e6)
        scores[..., 0] = torch.where(positive, -1e6, 1e6)
        return scores


def test_token_decisions_are_averaged_over_sites_prompt_and_answer_by_hand(llama, bank, prompts):
    gate, heard = ByToken(bank.shape(WIDTH), granularity="token"), []
    modules = dict(llama.named_modules())
    handles = [
        modules[site].register_forward_pre_hook(lambda module, args: heard.append((args[0][0, :, 0] > 0).tolist()))
        for site in bank.site_names
    ]
    with attached(llama, bank, gate=gate, select=TopK()) as routed:
        (one,) = of(routed, prompts[:1])
    for handle in handles:
        handle.remove()
    decisions = [decision for passed in heard for decision in passed]
    assert len(decisions) == len(bank.site_names) * (9 + 4)
    weight = sum(decisions) / len(decisions)
    assert 0.1 < weight < 0.9
    assert one.provenance.shares == shares(e2=round(weight, 6))


def test_profiles_a_gate_and_the_base_share_a_batch_by_hand(llama, bank, prompts):
    gate = OracleGate(bank.shape(WIDTH))
    legal, medical = Profile("legal", {"expert-1": 1.0, "expert-4": -0.25}), Profile("medical", {"expert-6": 2.0})
    with attached(llama, bank, gate=gate, select=TopK()) as routed:
        for profile in (legal, medical):
            routed.define(profile)
        with routed.given(profiles=["legal", None, "medical", None], domain=torch.tensor([8, 3, 8, 0])):
            found = [one.provenance for one in of(routed, prompts)]
    assert [one.shares for one in found] == [shares(e1=1.0, e4=-0.25), shares(e2=1.0), shares(e6=2.0), ()]
    assert [one.nothing for one in found] == [0.25, 0.0, 0.0, 1.0]
    by_gate = gate_digest(gate), canonical_json(TopK())
    given = [(one.gate, one.selection) for one in found]
    assert given == [("", canonical_json(legal)), by_gate, ("", canonical_json(medical)), by_gate]


def test_without_a_gate_profiles_weights_and_the_base_say_so_by_hand(llama, bank, prompts):
    with attached(llama, bank) as routed:
        assert {(one.provenance.shares, one.provenance.nothing) for one in of(routed, prompts)} == {((), 1.0)}
        routed.define(Profile("legal", {"expert-1": 0.5}))
        with routed.given(profiles=["legal", None, None, None]):
            found = [one.provenance for one in of(routed, prompts)]
        assert [one.shares for one in found] == [shares(e1=0.5), (), (), ()]
        routed.weigh([0.0, 0.0, 0.75, 0.0, 0.0, 0.5, 0.0, 0.0])
        found = [one.provenance for one in of(routed, prompts)]
        assert {one.shares for one in found} == {shares(e2=0.75, e5=0.5)}
        assert {(one.gate, one.selection, one.nothing) for one in found} == {("", "", 0.0)}
        with routed.disabled():
            assert {one.provenance.shares for one in of(routed, prompts)} == {()}


def test_a_free_slot_and_another_order_of_slots_do_not_mislead(llama, bank, blocks, prompts):
    gate = OracleGate(bank.shape(WIDTH))
    with attached(llama, bank, gate=gate, select=TopK()) as routed, routed.given(domain=torch.tensor([2, 6, 4, 1])):
        routed.unload("expert-1")
        routed.unload("expert-5")
        routed.load(blocks[5], version=VERSIONS[5])
        found = [one.provenance.shares for one in of(routed, prompts)]
    assert found == [(), shares(e5=1.0), shares(e3=1.0), shares(e0=1.0)]


# ------------------------------------------------------------------------------------------------------------------ ids


def test_equal_inputs_and_state_have_one_id_and_everything_else_another(llama, blocks, bank, prompts):
    def first(routed, prompt=prompts[0], **how):
        return of(routed, [prompt], **how)[0]

    gate = trained_like(SequenceGate(bank.shape(WIDTH)))
    with attached(llama, bank, gate=gate, select=TopK()) as routed:
        one = first(routed)
        assert first(routed) == one
        shorter = first(routed, max_new_tokens=4)
        asked = first(routed, prompts[1])
        gate.choice.bias.data[0] += 1e-3
        trained = first(routed)
        named = first(routed, gate="sequence gate of Tuesday")
    with attached(llama, ExpertBank(blocks, versions=VERSIONS), gate=gate, select=TopK(temperature=2.0)) as routed:
        warmer = first(routed)
    assert named.provenance.gate == "sequence gate of Tuesday"
    assert one.ids == trained.ids == named.ids == warmer.ids and shorter.ids == one.ids[:4]
    found = [one, shorter, asked, trained, named, warmer]
    assert len({answer.provenance.id for answer in found}) == len(found)


def test_a_gate_is_known_by_its_class_its_settings_and_its_state(bank):
    shape = bank.shape(WIDTH)
    gate = trained_like(SequenceGate(shape))
    assert gate_digest(gate) == gate_digest(trained_like(SequenceGate(shape)))
    others = [
        trained_like(SequenceGate(shape, granularity="token")),
        trained_like(SequenceGate(shape, dropout=0.1)),
        trained_like(LinearGate(shape)),
        UniformGate(shape),
        UniformGate(shape, abstain=0.5),
        ArrowGate(shape),
        ArrowGate(shape, normalise=True),
        OracleGate(shape),
    ]
    changed = trained_like(SequenceGate(shape))
    changed.phrase.weight.data[3, 5] += 1e-6
    assert len({gate_digest(other) for other in [gate, changed, *others]}) == len(others) + 2


# ---------------------------------------------------------------------------------------------------------------- swaps


def test_a_swap_between_two_answers_shows_in_the_second(llama, bank, prompts):
    gate = OracleGate(bank.shape(WIDTH))
    with attached(llama, bank, gate=gate, select=TopK()) as routed, routed.given(domain=torch.tensor([5])):
        (before,) = of(routed, prompts[:1])
        routed.swap("expert-4", block(llama, 12), version="c" * 64)
        (after,) = of(routed, prompts[:1])
    assert before.provenance.shares == shares(e4=1.0)
    assert after.provenance.shares == (Share("expert-4", "c" * 64, 1.0),)
    assert before.provenance.id != after.provenance.id


@pytest.fixture
def restless():
    """Threads take turns five hundred times as often as usual."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def test_answers_of_four_threads_among_swaps_are_of_one_version_that_their_provenance_names(
    llama, bank, prompts, restless
):
    """Fault test F12."""
    versions = {VERSIONS[5]: block(llama, 5), "d" * 64: block(llama, 9)}
    gate = OracleGate(bank.shape(WIDTH))
    with attached(llama, bank, gate=gate, select=TopK()) as routed:
        expected = {}
        for version, one in versions.items():
            routed.swap("expert-5", one, version=version)
            with routed.given(domain=torch.full((4,), 6)):
                expected[version] = [answer.ids for answer in of(routed, prompts)]
        assert len({str(ids) for ids in expected.values()}) == 2
        barrier, done = threading.Barrier(5), threading.Event()

        def serve():
            barrier.wait()
            with routed.given(domain=torch.full((4,), 6)):
                return [of(routed, prompts) for _ in range(6)]

        def swap():
            barrier.wait()
            swaps = 0
            while not done.is_set():
                for version, one in versions.items():
                    routed.swap("expert-5", one, version=version)
                    swaps += 1
            return swaps

        with ThreadPoolExecutor(5) as pool:
            swapping = pool.submit(swap)
            serving = [pool.submit(serve) for _ in range(4)]
            try:
                served = [future.result() for future in serving]
            finally:
                done.set()
            assert swapping.result() > 2
    batches = [batch for batches in served for batch in batches]
    seen = set()
    for batch in batches:
        (version,) = {share.version for answer in batch for share in answer.provenance.shares}
        assert [answer.ids for answer in batch] == expected[version]
        seen.add(version)
    assert seen == set(versions)


def test_a_swap_waits_for_the_whole_answer(llama, bank, prompts):
    order, inside = [], threading.Event()

    def wait_for_the_swap_to_wait(module, args):
        inside.set()
        while not routed._lock._changes_waiting and not order:
            pass
        order.append("pass")

    def swap():
        inside.wait()
        routed.swap("expert-5", block(llama, 9), version="d" * 64)
        order.append("swap")

    with attached(llama, bank, weights=[1.0] * 8) as routed:
        handle = llama.model.layers[0].register_forward_pre_hook(wait_for_the_swap_to_wait)
        thread = threading.Thread(target=swap)
        thread.start()
        (one,) = of(routed, prompts[:1])
        thread.join()
        handle.remove()
    assert order == ["pass"] * 5 + ["swap"]
    assert shares(e5=1.0)[0] in one.provenance.shares


def test_the_thread_that_answers_may_change_nothing_until_it_is_done(llama, bank, blocks, prompts):
    with attached(llama, bank, gate=OracleGate(bank.shape(WIDTH)), select=TopK()) as routed:
        changes = [
            lambda: routed.swap("expert-5", blocks[5], version="d" * 64),
            lambda: routed.weigh([1.0] * 8),
            lambda: routed.activate(["expert-1"]),
            lambda: routed.define(Profile("legal", {"expert-1": 1.0})),
        ]
        for change in changes:
            with (
                routed.unchanged(),
                pytest.raises(PmemxError, match="keeps the bank unchanged; make the change when that"),
            ):
                change()
        before = bank.residents
        for change in changes:
            change()
        assert before[5].version == VERSIONS[5] and bank.residents[5].version == "d" * 64


def test_a_thread_that_is_in_enters_again_though_a_change_waits():
    lock, order = SharedLock(), []

    def change():
        with lock.alone():
            order.append("change")

    changer = threading.Thread(target=change)
    with lock.shared():
        changer.start()
        while not lock._changes_waiting:
            pass
        with lock.shared():
            order.append("again")
        order.append("still in")
    changer.join()
    assert order == ["again", "still in", "change"]


# -------------------------------------------------------------------------------------------------------------- refused


def test_an_expert_without_a_version_is_refused(llama, blocks, prompts):
    with (
        attached(llama, ExpertBank(blocks), weights=[1.0] * 8) as routed,
        pytest.raises(PmemxError, match="expert 'expert-0' has no version, so no answer could say what produced it"),
    ):
        of(routed, prompts)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"num_beams": 3}, "asks for beam_search with 1 answers"),
        ({"prompt_lookup_num_tokens": 3}, "asks for assisted_generation with 1 answers"),
        ({"num_return_sequences": 2}, "asks for greedy_search with 2 answers"),
    ],
)
def test_searches_in_which_rows_change_places_are_refused(blocks, prompts, setting, words):
    model = tiny_llama()
    for name, value in setting.items():
        setattr(model.generation_config, name, value)
    with (
        attached(model, ExpertBank(blocks, versions=VERSIONS), weights=[1.0] * 8) as routed,
        pytest.raises(PmemxError, match=words),
    ):
        of(routed, prompts)


@pytest.mark.parametrize("name", ["prompt by site", "sequence"])
def test_a_model_whose_settings_ask_for_no_cache_keeps_its_decision_about_the_prompt(blocks, prompts, name):
    """Without a cache every pass would decide anew, about a prompt that holds more and more of the answer."""
    found = []
    for use_cache in (True, False):
        model = tiny_llama()
        model.config.use_cache = model.generation_config.use_cache = use_cache
        bank = ExpertBank(blocks, versions=VERSIONS)
        gate = trained_like(GATES[name](bank.shape(WIDTH)))
        with attached(model, bank, gate=gate, select=TopK(k=2)) as routed:
            found.append(of(routed, prompts))
            assert generate(model, ENDLESS, prompts, max_new_tokens=5) == [one.ids for one in found[-1]]
    assert found[0] == found[1]
