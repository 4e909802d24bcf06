"""Requests side by side: every thread and every row has its own experts, and a change of the bank waits for passes."""

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_models import WIDTH, block, logits, tiny_llama, trained_like

from pmemx.core.bank import ExpertBank
from pmemx.core.errors import IncompatibleBlock, PmemxError
from pmemx.core.profile import Profile
from pmemx.gate.linear import LinearGate
from pmemx.gate.sequence import SequenceGate
from pmemx.gate.xlora import XLoraGate
from pmemx.runtime.attach import attached
from pmemx.runtime.lock import SharedLock
from pmemx.select.softmax import Softmax
from pmemx.select.top_k import TopK

ROUNDS = 6
GATES = {
    "site": lambda shape: LinearGate(shape, granularity="token"),
    "running vote": lambda shape: LinearGate(shape, granularity="prefix", level="model"),
    "second cache": XLoraGate,
    "prompt": SequenceGate,
}


@pytest.fixture(autouse=True)
def restless():
    """Threads take turns five hundred times as often as usual."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def at_once(*works: Callable[[], object]) -> list[object]:
    """Results of works that begin together, each on a thread of its own."""
    barrier = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> object:
        barrier.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(run, work) for work in works]]


def generated(model, ids):
    mask = torch.ones_like(ids)
    return model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False, eos_token_id=None)


@pytest.mark.parametrize("name", GATES)
def test_two_threads_with_other_active_experts_generate_what_each_generates_alone(llama, bank, ids, name):
    gate = trained_like(GATES[name](bank.shape(WIDTH)))
    requests = {"a": [["expert-1", "expert-2"]], "b": [["expert-4"], None, ["expert-7"], []]}
    with attached(llama, bank, gate=gate, select=TopK(k=2)) as routed:

        def serve(active):
            with routed.given(active=active):
                return generated(llama, ids)

        alone = {key: serve(active) for key, active in requests.items()}
        assert not torch.equal(alone["a"], alone["b"])

        def again(key):
            return [torch.equal(serve(requests[key]), alone[key]) for _ in range(ROUNDS)]

        assert at_once(lambda: again("a"), lambda: again("b")) == [[True] * ROUNDS] * 2


def test_two_threads_with_other_profiles_and_one_without_experts_see_their_own(llama, bank, ids):
    base = logits(llama, ids)
    with attached(llama, bank) as routed:
        routed.define(Profile("law", {"expert-1": 1.0, "expert-3": 0.5}))
        routed.define(Profile("medicine", {"expert-6": 1.5}))

        def of_profile(name):
            with routed.given(profiles=[name]):
                return logits(llama, ids)

        def of_base():
            with routed.disabled():
                return logits(llama, ids)

        alone = {name: of_profile(name) for name in ("law", "medicine")}
        assert (alone["law"] - alone["medicine"]).abs().max() > 1e-2

        def again(work, expected):
            return [torch.equal(work(), expected) for _ in range(4 * ROUNDS)]

        results = at_once(
            lambda: again(lambda: of_profile("law"), alone["law"]),
            lambda: again(lambda: of_profile("medicine"), alone["medicine"]),
            lambda: again(of_base, base),
        )
    assert results == [[True] * 4 * ROUNDS] * 3


def test_what_one_thread_observes_is_its_own(llama, bank, ids):
    gate = trained_like(LinearGate(bank.shape(WIDTH), granularity="token"))
    with attached(llama, bank, gate=gate, select=Softmax()) as routed:

        def watch(rows):
            seen = []
            with routed.observed(lambda observation: seen.append(observation.routing.weight.shape[0])):
                for _ in range(ROUNDS):
                    logits(llama, ids[:rows])
            return seen

        one, other = at_once(lambda: watch(1), lambda: watch(3))
    assert one == [1] * len(bank.site_names) * ROUNDS and other == [3] * len(bank.site_names) * ROUNDS


@pytest.mark.parametrize("name", [None, *GATES])
def test_rows_of_two_profiles_in_one_batch_equal_their_separate_passes(llama, bank, ids, name):
    gate = None if name is None else trained_like(GATES[name](bank.shape(WIDTH)))
    rows = ["law", None, "medicine", "law"]
    with attached(llama, bank, gate=gate, select=None if gate is None else TopK(k=2)) as routed:
        routed.define(Profile("law", {"expert-1": 1.0, "expert-3": -0.5}))
        routed.define(Profile("medicine", {"expert-6": 1.5}))
        with routed.given(profiles=rows):
            together = logits(llama, ids)
        for row, profile in enumerate(rows):
            with routed.given(profiles=[profile]):
                alone = logits(llama, ids[row : row + 1])[0]
            assert (together[row] - alone).abs().max() < 1e-5
        gate_alone = logits(llama, ids)
    assert all((together[row] - gate_alone[row]).abs().max() > 1e-2 for row in (0, 2, 3))
    assert (together[1] - gate_alone[1]).abs().max() < 1e-5


def test_a_profile_with_a_pinned_version_refuses_another(llama, blocks, bank, ids):
    with attached(llama, bank) as routed:
        routed.swap("expert-1", blocks[1], version="v1")
        routed.define(Profile("law", {"expert-1": 1.0}, versions={"expert-1": "v1"}))
        with routed.given(profiles=["law"]):
            before = logits(llama, ids)
        with pytest.raises(PmemxError, match="profile 'law' wants version 'v1' of 'expert-1', not 'v2'"):
            routed.swap("expert-1", block(llama, 9), version="v2")
        with routed.given(profiles=["law"]):
            assert torch.equal(logits(llama, ids), before)
        with pytest.raises(IncompatibleBlock, match="wants version 'v3' of 'expert-1', the bank holds 'v1'"):
            routed.define(Profile("other", {"expert-1": 1.0}, versions={"expert-1": "v3"}))


def test_a_swap_waits_for_the_pass_under_way_and_passes_see_one_version_or_the_other(llama, bank, ids):
    old, new = block(llama, 5), block(llama, 9)
    weights = [float(number == 5) for number in range(8)]
    with attached(llama, bank, weights=weights) as routed:
        versions = [logits(llama, ids)]
        routed.swap("expert-5", new)
        versions.append(logits(llama, ids))
        assert (versions[0] - versions[1]).abs().max() > 1e-2

        def serve():
            seen = [logits(llama, ids) for _ in range(8 * ROUNDS)]
            return [[torch.equal(one, version) for version in versions] for one in seen]

        def swap():
            for number in range(4 * ROUNDS):
                routed.swap("expert-5", old if number % 2 else new)
            return []

        one, other, _ = at_once(serve, serve, swap)
    assert all(sum(match) == 1 for match in [*one, *other])


def test_a_swap_begins_only_when_the_pass_that_runs_has_ended(llama, bank, ids):
    inside, order = threading.Event(), []

    def wait_for_the_swap_to_wait(module, args):
        inside.set()
        while not routed._lock._changes_waiting and not order:
            pass
        order.append("pass")

    def swap():
        inside.wait()
        routed.swap("expert-5", block(llama, 9))
        order.append("swap")

    with attached(llama, bank, weights=[1.0] * 8) as routed:
        before = logits(llama, ids)
        handle = llama.model.layers[1].register_forward_pre_hook(wait_for_the_swap_to_wait)
        found, _ = at_once(lambda: logits(llama, ids), swap)
        handle.remove()
    assert order == ["pass", "swap"] and torch.equal(found, before)


def test_a_pass_that_fails_lets_the_next_change_through(llama, bank, ids):
    with attached(llama, bank, weights=[1.0] * 8) as routed:
        with pytest.raises(IndexError, match="out of range"):
            logits(llama, ids + 1000)
        assert at_once(lambda: routed.swap("expert-5", block(llama, 9))) == [None]


def test_a_change_that_waits_is_not_starved_by_passes_that_keep_coming():
    lock, log = SharedLock(), []

    def change():
        with lock.alone():
            log.append("change")

    def late_pass():
        with lock.shared():
            log.append("pass")

    changer, late = threading.Thread(target=change), threading.Thread(target=late_pass)
    with lock.shared():
        changer.start()
        while not lock._changes_waiting:
            pass
        late.start()
        while len(lock._changed._waiters) < 2 and not log:
            pass
        assert log == []
    changer.join()
    late.join()
    assert log == ["change", "pass"]


def test_training_with_checkpoints_and_serving_on_other_threads_do_not_disturb_each_other(ids):
    model = tiny_llama().train()
    model.activation_checkpointing_enable()
    functions = [layer._gradient_checkpointing_func for layer in model.model.layers]
    bank = ExpertBank([block(model, number) for number in range(8)])
    gate = trained_like(LinearGate(bank.shape(WIDTH), granularity="token"))
    with attached(model, bank, gate=gate, select=Softmax()) as routed:

        def serve():
            with routed.given(active=[["expert-2"]]):
                return logits(model, ids)

        def gradients(active):
            with routed.given(active=active):
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, tuple(gate.parameters()))])

        some, others = [["expert-1", "expert-4"]], [["expert-2", "expert-5", "expert-7"], None, ["expert-6"], []]
        served, trained, trained_too = serve(), gradients(some), gradients(others)
        assert (trained - trained_too).abs().max() > 1e-4
        results = at_once(
            lambda: [torch.equal(gradients(some), trained) for _ in range(ROUNDS)],
            lambda: [torch.equal(gradients(others), trained_too) for _ in range(ROUNDS)],
            lambda: [torch.equal(serve(), served) for _ in range(2 * ROUNDS)],
        )
    assert results == [[True] * ROUNDS, [True] * ROUNDS, [True] * 2 * ROUNDS]
    assert [layer._gradient_checkpointing_func for layer in model.model.layers] == functions
