"""A model that serves takes another gate, and with it another expert; what gates learn from is what they will read."""

import pytest
import torch
from kv_cache import CACHE, cache_of
from tiny_models import WIDTH, logits, trained_like
from torch import Tensor

from pmemx.core.bank import BankShape, ExpertBank
from pmemx.core.errors import IncompatibleBlock, PmemxError
from pmemx.core.grown import grown
from pmemx.gate.arrow import ArrowGate
from pmemx.gate.linear import LinearGate
from pmemx.gate.sequence import SequenceGate
from pmemx.gate.tracking import TrackingGate
from pmemx.runtime.attach import Routed, attached
from pmemx.select.softmax import Softmax
from pmemx.select.top_k import TopK

NONE, LENGTH = -1, 9


def texts(number: int, rows: int = 6) -> Tensor:
    """Token ids of a domain: six tokens of its own; those of NONE are the last ones."""
    first = 3 + 6 * (number if number != NONE else 8)
    return torch.randint(first, first + 6, (rows, LENGTH), generator=torch.Generator().manual_seed(number + 1))


def show(routed: Routed, gate: TrackingGate, ids: Tensor, choice: int) -> None:
    hidden, inside = routed.read(ids, torch.ones_like(ids))
    gate.note(hidden, inside, torch.full((len(ids),), choice))


class TestAdopt:
    def test_a_cache_that_the_earlier_gate_decided_is_refused(self, llama, bank, ids):
        one, other = (trained_like(SequenceGate(bank.shape(WIDTH))) for _ in range(2))
        with torch.no_grad(), attached(llama, bank, gate=one, select=TopK()) as routed:
            cache = cache_of(llama(input_ids=ids, use_cache=True))
            llama(input_ids=ids[:, :1], **{CACHE: cache}, use_cache=True)
            routed.adopt(other)
            with pytest.raises(
                PmemxError, match="the gate, the active experts or their weights changed since this cache"
            ):
                llama(input_ids=ids[:, :1], **{CACHE: cache}, use_cache=True)
            fresh = cache_of(llama(input_ids=ids, use_cache=True))
            llama(input_ids=ids[:, :1], **{CACHE: fresh}, use_cache=True)

    def test_the_next_pass_is_that_of_a_model_attached_with_the_other_gate(self, llama, bank, ids):
        one, other = trained_like(SequenceGate(bank.shape(WIDTH))), trained_like(LinearGate(bank.shape(WIDTH)))
        with attached(llama, bank, gate=other, select=Softmax()):
            expected = logits(llama, ids)
        with attached(llama, bank, gate=one, select=Softmax()) as routed:
            before = logits(llama, ids)
            routed.adopt(other)
            assert routed.gate is other
            found = logits(llama, ids)
        assert torch.equal(found, expected) and not torch.equal(found, before)

    def test_a_gate_that_reads_factors_has_read_the_bank(self, llama, bank, ids):
        with attached(llama, bank, gate=ArrowGate(bank.shape(WIDTH)), select=TopK(k=3)):
            expected = logits(llama, ids)
        with attached(llama, bank, gate=trained_like(SequenceGate(bank.shape(WIDTH))), select=TopK(k=3)) as routed:
            routed.adopt(ArrowGate(bank.shape(WIDTH)))
            assert torch.equal(logits(llama, ids), expected)

    def test_what_cannot_serve_is_refused_and_the_earlier_gate_serves_on(self, llama, bank, ids):
        gate, shape = trained_like(SequenceGate(bank.shape(WIDTH))), bank.shape(WIDTH)
        with attached(llama, bank, gate=gate, select=TopK()) as routed:
            before = logits(llama, ids)
            stranger = SequenceGate(BankShape((*shape.experts, "stranger"), shape.sites, WIDTH))
            with pytest.raises(IncompatibleBlock, match="built for expert 'stranger'"):
                routed.adopt(stranger)
            with pytest.raises(IncompatibleBlock, match="the gate knows"):
                routed.adopt(LinearGate(BankShape(shape.experts, {"elsewhere": WIDTH}, WIDTH)))
            assert routed.gate is gate and torch.equal(logits(llama, ids), before)
        with attached(llama, bank, weights=[1.0] * 8) as routed, pytest.raises(PmemxError, match="no gate serves here"):
            routed.adopt(gate)


@pytest.mark.parametrize("granularity", ["prompt", "turn"])
class TestAnExpertAtRunTime:
    """Seven experts serve; an eighth joins, whose examples alone are seen then."""

    @pytest.fixture
    def served(self, llama, blocks, granularity):
        bank = ExpertBank(blocks[:7], spare=1, room=4)
        gate = TrackingGate(bank.shape(WIDTH), granularity=granularity).eval()
        with torch.no_grad(), attached(llama, bank, gate=gate, select=TopK()) as routed:
            for number in (NONE, *range(7)):
                show(routed, gate, texts(number), number + 1)
            gate.fit()
            yield routed

    def join(self, routed: Routed, blocks, granularity) -> None:
        gate = routed.gate
        assert isinstance(gate, TrackingGate)
        routed.load(blocks[7])
        larger = grown(gate, TrackingGate(routed.bank.shape(WIDTH), granularity=granularity))
        assert isinstance(larger, TrackingGate)
        show(routed, larger, texts(7), 8)
        larger.fit()
        routed.adopt(larger)

    def test_answers_of_the_others_stay_bit_for_bit(self, llama, served, blocks, granularity):
        old = torch.cat([texts(number, 2) for number in (NONE, *range(7))])
        before, chosen = logits(llama, old), served.decide(old, torch.ones_like(old)).argmax(dim=-1)
        assert (chosen[:, -1].view(-1, 2) == torch.arange(8)[:, None]).all()
        self.join(served, blocks, granularity)
        assert torch.equal(served.decide(old, torch.ones_like(old)).argmax(dim=-1), chosen)
        assert torch.equal(logits(llama, old), before)

    def test_the_new_one_is_chosen_for_its_texts(self, llama, served, blocks, granularity):
        new = texts(7, 4)
        before = logits(llama, new)
        self.join(served, blocks, granularity)
        assert (served.decide(new, torch.ones_like(new)).argmax(dim=-1) == 8).all()
        found = logits(llama, new)
        assert not torch.equal(found, before)
        served.weigh([0.0] * 7 + [1.0])
        assert torch.allclose(logits(llama, new), found, atol=1e-5)


class TestWhatGatesSee:
    MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1] * 9, [1] * 9, [1] * 7 + [0, 0]])
    PROMPT = MASK.bool() & (torch.arange(9) < 6)

    def test_a_context_gate_reads_states_behind_its_reach_and_nothing_of_padding(self, llama, bank, ids):
        gate = TrackingGate(bank.shape(WIDTH), window=3)
        with (
            torch.no_grad(),
            attached(llama, bank, gate=gate, select=TopK()) as routed,
            routed.given(prompt=self.PROMPT),
        ):
            hidden, inside = routed.read(ids, self.MASK)
        embedded = llama.get_input_embeddings()(ids) * self.MASK[..., None]
        assert hidden.shape == (4, 11, WIDTH) and not hidden[:, :2].any()
        assert torch.equal(hidden[:, 2:], embedded)
        assert torch.equal(inside, self.PROMPT)

    def test_a_gate_of_prompts_reads_the_prompt_alone(self, llama, bank, ids):
        gate = SequenceGate(bank.shape(WIDTH), layer=1)
        with torch.no_grad(), attached(llama, bank, gate=gate, select=TopK()) as routed:
            with routed.given(prompt=self.PROMPT):
                hidden, inside = routed.read(ids, self.MASK)
            with routed.disabled():
                out = llama(input_ids=ids, attention_mask=self.MASK, output_hidden_states=True, use_cache=False)
        expected = out.hidden_states[1].masked_fill(~self.PROMPT[..., None], 0)
        assert torch.allclose(hidden[:, gate.reach :], expected, atol=1e-6) and not hidden[:, : gate.reach].any()
        assert torch.equal(inside, self.PROMPT)

    def test_a_site_gate_hears_at_every_site_what_the_base_reads_there(self, llama, bank, ids):
        gate = trained_like(LinearGate(bank.shape(WIDTH), granularity="token"))
        read: dict[str, Tensor] = {}
        handles = [
            llama.get_submodule(site).register_forward_hook(
                lambda _, given, out, site=site: read.update({site: given[0]})
            )
            for site in bank.site_names
        ]
        with torch.no_grad():
            llama(input_ids=ids, attention_mask=self.MASK, use_cache=False)
        for handle in handles:
            handle.remove()
        with torch.no_grad(), attached(llama, bank, gate=gate, select=TopK()) as routed:
            before = logits(llama, ids)
            with routed.given(prompt=self.PROMPT):
                found = routed.pooled_at_sites(ids, self.MASK)
            assert found.keys() == read.keys() and len(found) == len(bank.site_names)
            for site, said in found.items():
                expected = torch.stack(
                    [gate(site, x[None])[0][mask].mean(dim=0) for x, mask in zip(read[site], self.PROMPT, strict=True)]
                )
                assert torch.allclose(said[:, 0], expected, atol=1e-5), site
            # Looking leaves nothing behind.
            assert torch.equal(logits(llama, ids), before)

    def test_each_kind_of_gate_is_asked_in_its_own_way(self, llama, bank, ids):
        with attached(llama, bank, gate=LinearGate(bank.shape(WIDTH)), select=TopK()) as routed:
            for ask in (routed.read, routed.pooled, routed.decide):
                with pytest.raises(PmemxError, match="only a gate that reads the context"):
                    ask(ids, self.MASK)
        with (
            attached(llama, bank, gate=SequenceGate(bank.shape(WIDTH)), select=TopK()) as routed,
            pytest.raises(PmemxError, match="only a gate that decides at sites"),
        ):
            routed.pooled_at_sites(ids, self.MASK)
        with (
            attached(llama, bank, weights=[1.0] * 8) as routed,
            pytest.raises(PmemxError, match="only a gate that reads"),
        ):
            routed.read(ids, self.MASK)
