"""Experts come, go and change while the model serves; every request gets what it asked for, or a clear refusal."""

import pytest
import torch
from tiny_models import WIDTH, block, logits, tiny_llama, trained_like

from pmemx.core.bank import ExpertBank
from pmemx.core.block import CapabilityBlock
from pmemx.core.errors import ConfigError, IncompatibleBlock, PmemxError, UnknownBlock
from pmemx.core.gate import ContextGate, SiteGate
from pmemx.core.profile import Profile
from pmemx.gate.linear import LinearGate
from pmemx.gate.oracle import OracleGate
from pmemx.gate.sequence import SequenceGate
from pmemx.runtime.attach import attach, attached
from pmemx.select.softmax import Softmax
from pmemx.select.top_k import TopK


def only(bank: ExpertBank, name: str) -> list[float]:
    return [float(other == name) for other in bank.names]


def alone(llama, blocks: list[CapabilityBlock], weights: list[float], ids: torch.Tensor) -> torch.Tensor:
    """Logits under fixed weights of a bank of its own."""
    with attached(llama, ExpertBank(blocks), weights=weights):
        return logits(llama, ids)


def test_plain_calls_do_what_the_block_does(llama, bank, ids):
    base = logits(llama, ids)
    routed = attach(llama, bank, weights=[1.0] * 8)
    inside = logits(llama, ids)
    routed.detach()
    with attached(llama, bank, weights=[1.0] * 8):
        assert torch.equal(logits(llama, ids), inside)
    assert torch.equal(logits(llama, ids), base)


def test_a_swapped_expert_answers_at_once_and_swapping_back_restores_every_bit(llama, bank, blocks, ids):
    gate = OracleGate(bank.shape(WIDTH))
    with attached(llama, bank, gate=gate, select=TopK()) as routed, routed.given(domain=torch.full((4,), 5)):
        before = logits(llama, ids)
        routed.swap("expert-4", block(llama, 12))
        assert torch.allclose(logits(llama, ids), alone(tiny_llama(), [block(llama, 12)], [1.0], ids), atol=1e-5)
        routed.swap("expert-4", blocks[4])
        assert torch.equal(logits(llama, ids), before)


def test_an_expert_that_is_loaded_later_is_reached_by_weights_and_profiles(llama, blocks, ids):
    bank = ExpertBank(blocks[:6], spare=2, room=4)
    with attached(llama, bank, gate=OracleGate(bank.shape(WIDTH)), select=TopK()) as routed:
        routed.load(blocks[7])
        routed.define(Profile("late", {"expert-7": 0.5, "expert-2": 1.0}))
        with routed.given(profiles=["late"]):
            found = logits(llama, ids)
    assert torch.allclose(found, alone(llama, [blocks[7], blocks[2]], [0.5, 1.0], ids), atol=1e-5)


def test_an_unloaded_expert_is_never_chosen(llama, bank, ids):
    base = logits(llama, ids)
    with attached(llama, bank, gate=OracleGate(bank.shape(WIDTH)), select=TopK()) as routed:
        routed.unload("expert-2")
        with routed.given(domain=torch.tensor([3, 4, 3, 1])):
            found = logits(llama, ids)
    assert (found - base).abs().amax(dim=(1, 2)).gt(0).tolist() == [False, True, False, True]


def test_an_expert_comes_back_under_its_name_into_another_slot(llama, bank, blocks, ids):
    gate = OracleGate(bank.shape(WIDTH))
    with (
        attached(llama, bank, gate=gate, select=TopK()) as routed,
        routed.given(domain=torch.tensor([2, 6, 4, 1])),
    ):
        before = logits(llama, ids)
        routed.unload("expert-1")
        routed.unload("expert-5")
        routed.load(blocks[5])
        routed.load(blocks[1])
        assert bank.slot("expert-5") == 1 and bank.slot("expert-1") == 5
        assert torch.allclose(logits(llama, ids), before, atol=1e-6)


def test_rows_of_one_batch_choose_among_their_own_experts(llama, bank, ids):
    gate = trained_like(SequenceGate(bank.shape(WIDTH)))
    rows = [["expert-0", "expert-3"], [], None, ["expert-6"]]
    with attached(llama, bank, gate=gate, select=Softmax()) as routed:
        with routed.given(active=rows):
            together = logits(llama, ids)
        for row, names in enumerate(rows):
            with routed.given(active=[names]):
                assert torch.allclose(together[row], logits(llama, ids[row : row + 1])[0], atol=1e-5)
    assert (together[1] - logits(llama, ids)[1]).abs().max() < 1e-6


def test_two_profiles_a_gate_and_the_base_share_a_batch(llama, bank, blocks, ids):
    with attached(llama, bank, gate=OracleGate(bank.shape(WIDTH)), select=TopK()) as routed:
        routed.define(Profile("legal", {"expert-1": 1.0, "expert-4": 0.25}))
        routed.define(Profile("medical", {"expert-6": 2.0}))
        with routed.given(profiles=["legal", None, "medical", None], domain=torch.tensor([8, 3, 8, 0])):
            found = logits(llama, ids)
    assert torch.allclose(found[0], alone(llama, [blocks[1], blocks[4]], [1.0, 0.25], ids)[0], atol=1e-5)
    assert torch.allclose(found[1], alone(llama, [blocks[2]], [1.0], ids)[1], atol=1e-5)
    assert torch.allclose(found[2], alone(llama, [blocks[6]], [2.0], ids)[2], atol=2e-5)
    assert torch.allclose(found[3], logits(llama, ids)[3], atol=1e-6)


def test_profiles_need_no_gate(llama, bank, blocks, ids):
    base = logits(llama, ids)
    with attached(llama, bank) as routed:
        assert torch.equal(logits(llama, ids), base)
        routed.define(Profile("legal", {"expert-1": 1.0}))
        with routed.given(profiles=["legal", None, None, "legal"]):
            found = logits(llama, ids)
    assert torch.equal(found[1:3], base[1:3])
    assert torch.allclose(found[0], alone(llama, [blocks[1]], [1.0], ids)[0], atol=1e-5)


def test_profiles_hold_through_generation(llama, bank, ids):
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    with attached(llama, bank) as routed:
        routed.define(Profile("legal", {"expert-1": 1.0}))
        routed.define(Profile("medical", {"expert-6": 1.5}))
        with routed.given(profiles=["legal", "medical", None, "legal"]):
            mixed = llama.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
        for row, name in enumerate(["legal", "medical", None, "legal"]):
            with routed.given(profiles=[name]):
                one = ids[row : row + 1]
                alone = llama.generate(input_ids=one, attention_mask=torch.ones_like(one), **settings)
            assert torch.equal(mixed[row], alone[0])


def test_weights_take_the_place_of_the_gate_and_give_it_back(llama, bank, blocks, ids):
    gate = OracleGate(bank.shape(WIDTH))
    with (
        attached(llama, bank, gate=gate, select=TopK()) as routed,
        routed.given(domain=torch.tensor([1, 2, 3, 0])),
    ):
        by_gate = logits(llama, ids)
        routed.weigh(only(bank, "expert-5"))
        assert torch.allclose(logits(llama, ids), alone(tiny_llama(), [blocks[5]], [1.0], ids), atol=1e-5)
        routed.weigh(None)
        assert torch.equal(logits(llama, ids), by_gate)


def test_a_profile_keeps_its_meaning_in_a_file():
    profile = Profile("legal", {"law": 0.5, "latin": 1.0}, {"law": "law@3"})
    assert Profile.from_json(profile.to_json()) == profile


def test_a_profile_that_names_versions_gets_no_others(llama, blocks):
    bank = ExpertBank(blocks[:2], versions=["expert-0@3", "expert-1@7"])
    with attached(llama, bank) as routed:
        routed.define(Profile("pinned", {"expert-0": 1.0}, {"expert-0": "expert-0@3"}))
        with pytest.raises(IncompatibleBlock, match="wants version 'expert-1@6' of 'expert-1', the bank holds"):
            routed.define(Profile("old", {"expert-1": 1.0}, {"expert-1": "expert-1@6"}))
        with pytest.raises(
            PmemxError, match="profile 'pinned' wants version 'expert-0@3' of 'expert-0', not 'expert-0@4'"
        ):
            routed.swap("expert-0", blocks[0], version="expert-0@4")
        with pytest.raises(PmemxError, match="profile 'pinned' uses 'expert-0'"):
            routed.unload("expert-0")


class NotANumber(ContextGate):
    """Scores that went wrong."""

    def read(self, hidden):
        return hidden[..., :0]

    def score(self, pooled, domain):
        return torch.full((*pooled.shape[:2], self.shape.num_choices), float("nan"))


class NotANumberAtOneSite(SiteGate):
    """Scores that went wrong at one site."""

    def forward(self, site, x):
        scores = x.new_zeros(*x.shape[:2], self.shape.num_choices)
        return scores + float("nan") if site == "model.layers.1.self_attn.v_proj" else scores


def test_a_gate_that_returns_nan_stops_with_the_name_of_the_site(llama, bank, ids):
    base = logits(llama, ids)
    here = r"NotANumberAtOneSite scores NaN at 'model\.layers\.1\.self_attn\.v_proj'"
    everywhere = "NotANumber scores NaN for the whole model"
    for gate, message in (
        (NotANumberAtOneSite(bank.shape(WIDTH)), here),
        (NotANumber(bank.shape(WIDTH)), everywhere),
    ):
        with attached(llama, bank, gate=gate, select=Softmax()), pytest.raises(PmemxError, match=message):
            logits(llama, ids)
    assert torch.equal(logits(llama, ids), base)


def test_bad_input_is_refused_early_with_the_remedy(llama, bank, blocks, ids):
    gate = OracleGate(bank.shape(WIDTH))
    with attached(llama, bank, gate=gate, select=TopK()) as routed:
        with pytest.raises(PmemxError, match="a bank is attached to this model already; detach it first"):
            attach(llama, bank, weights=[1.0] * 8)
        with pytest.raises(UnknownBlock, match="no expert 'expert-99' in this bank; there are expert-0, expert-1"):
            routed.activate(["expert-99"])
        with pytest.raises(UnknownBlock, match="no expert 'nobody'"), routed.given(active=[["nobody"]]):
            pass
        with (
            pytest.raises(PmemxError, match="no profile 'legal' is defined; there are: none"),
            routed.given(profiles=["legal"]),
        ):
            pass
        with pytest.raises(IncompatibleBlock, match="no free slot for 'expert-9': all 8 slots are taken"):
            routed.load(block(llama, 9))
        with pytest.raises(PmemxError, match="3 weights for 8 experts"):
            routed.weigh([1.0, 2.0, 3.0])
        with pytest.raises(PmemxError, match="not finite"):
            routed.weigh([float("inf")] * 8)
        with pytest.raises(PmemxError, match="active has 3 entries for 4 rows"), routed.given(active=[[], [], []]):
            logits(llama, ids)
        with pytest.raises(PmemxError, match="prompt"), routed.given(prompt=torch.ones(3, 9, dtype=torch.bool)):
            logits(llama, ids)
        with pytest.raises(PmemxError, match="call the model itself, not a part of it"):
            llama.model(input_ids=ids)
    with pytest.raises(ConfigError, match="temperature"):
        Softmax(temperature=0.0)


def test_a_gate_for_another_bank_is_refused(llama, bank, blocks):
    other = ExpertBank([block(llama, 20)])
    with pytest.raises(
        IncompatibleBlock, match="the gate was built for expert 'expert-20', but the bank holds expert-0"
    ):
        attach(llama, bank, gate=OracleGate(other.shape(WIDTH)), select=TopK())
    fewer = ExpertBank([CapabilityBlock(b.card, dict(list(b.factors.items())[:2])) for b in blocks])
    with pytest.raises(IncompatibleBlock, match=r"the gate knows 'model\..*' with width None, the bank with"):
        attach(llama, bank, gate=LinearGate(fewer.shape(WIDTH)), select=TopK())


def test_a_model_of_other_widths_is_refused(bank):
    with pytest.raises(IncompatibleBlock, match="in the bank; load the base that the experts were trained on"):
        attach(tiny_llama(intermediate_size=40), bank)


def test_an_error_in_a_pass_leaves_the_model_ready_for_the_next(llama, bank, blocks, ids):
    with attached(llama, bank, weights=only(bank, "expert-3")) as routed:
        expected = logits(llama, ids)
        with pytest.raises(IndexError):
            logits(llama, ids + 1000)
        assert torch.equal(logits(llama, ids), expected)
        routed.swap("expert-3", blocks[0])


def test_state_dict_and_saving_are_those_of_the_base(llama, bank, ids, tmp_path):
    llama.save_pretrained(tmp_path / "before")
    with attached(llama, bank, weights=[1.0] * 8):
        logits(llama, ids)
        llama.save_pretrained(tmp_path / "inside")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("before", "inside")]
    assert weights[0] == weights[1]


def test_inference_mode_does_not_spoil_a_later_training_pass(llama, bank, ids):
    gate = SequenceGate(bank.shape(WIDTH))
    with attached(llama, bank, gate=gate, select=Softmax()) as routed:
        routed.activate(["expert-1", "expert-2"])
        with torch.inference_mode():
            llama(input_ids=ids)
        llama(input_ids=ids, labels=ids).loss.backward()
        routed.weigh([0.5] * 8)
        with torch.inference_mode():
            llama(input_ids=ids)
        embeddings = llama.get_input_embeddings()(ids).detach().requires_grad_()
        llama(inputs_embeds=embeddings, labels=ids).loss.backward()
    assert gate.choice.weight.grad is not None and embeddings.grad is not None
