"""Retrieval sends a prompt to the expert whose examples it resembles."""

import pytest
import torch

from pmemx.core.bank import BankShape
from pmemx.core.errors import ConfigError
from pmemx.core.grown import grown
from pmemx.gate.retrieval import RetrievalGate

SHAPE = BankShape(("law", "botany"), {"layers.0.up_proj": 4}, 4)
AXES = torch.eye(4)


def seen(gate: RetrievalGate, examples: dict[int, torch.Tensor]) -> RetrievalGate:
    for choice, pooled in examples.items():
        gate.see(pooled[:, None], torch.full((len(pooled),), choice))
    return gate


def test_by_hand():
    gate = seen(RetrievalGate(SHAPE, centre=False), {0: AXES[2:3], 1: AXES[:1] + AXES[1:2], 2: AXES[3:]})
    scores = gate.score(AXES[None, :2] * 5, None)
    assert torch.allclose(scores, torch.tensor([[[0.0, 0.5**0.5, 0.0], [0.0, 0.5**0.5, 0.0]]]))


def test_what_all_prompts_share_is_taken_away():
    """All states lie near (9, 9, 9, 9); without that, an example is as unlike the others as it can be."""
    gate = seen(RetrievalGate(SHAPE), {c: 9 + AXES[c : c + 1] for c in range(3)})
    scores = gate.score(9 + AXES[None, :3], None)[0]
    assert torch.allclose(scores, 1.5 * torch.eye(3) - 0.5, atol=1e-5)


def test_text_that_needs_no_expert_has_its_own_centroid_or_a_constant():
    examples = {1: AXES[:1], 2: AXES[1:2]}
    assert seen(RetrievalGate(SHAPE), examples).score(AXES[None, 2:3], None).argmax() > 0
    assert seen(RetrievalGate(SHAPE, abstain=0.5), examples).score(AXES[None, 2:3], None).argmax() == 0
    known = seen(RetrievalGate(SHAPE), examples | {0: AXES[2:3]})
    assert known.score(AXES[None, 2:3], None).argmax() == 0


def test_the_order_and_the_batches_of_examples_do_not_matter():
    pooled = torch.randn(40, 1, 4, generator=torch.Generator().manual_seed(0))
    choice = torch.arange(40) % 3
    whole, pieces = RetrievalGate(SHAPE), RetrievalGate(SHAPE)
    whole.see(pooled, choice)
    for index in torch.randperm(40, generator=torch.Generator().manual_seed(1)).split(7):
        pieces.see(pooled[index], choice[index])
    assert torch.equal(whole.score(pooled, None), pieces.score(pooled, None))


def test_an_expert_without_examples_is_named():
    gate = seen(RetrievalGate(SHAPE), {0: AXES[:1], 2: AXES[1:2]})
    with pytest.raises(ConfigError, match="no example of law; show it prompts of every expert"):
        gate.score(AXES[None], None)


def test_tokens_are_read_at_unit_length():
    hidden = torch.randn(2, 3, 4)
    gate = RetrievalGate(SHAPE)
    assert torch.allclose(gate.read(hidden).square().mean(dim=-1), torch.ones(2, 3), atol=1e-4)
    assert torch.allclose(gate.read(hidden), gate.read(1e3 * hidden), atol=1e-4)


def test_grows_by_an_expert_and_keeps_what_it_knows():
    examples = {0: AXES[:1], 1: AXES[1:2], 2: AXES[2:3]}
    gate = seen(RetrievalGate(SHAPE, centre=False), examples)
    larger = grown(gate, RetrievalGate(BankShape(("law", "new", "botany"), SHAPE.sites, 4), centre=False))
    assert isinstance(larger, RetrievalGate)
    with pytest.raises(ConfigError, match="no example of new"):
        larger.score(AXES[None], None)
    larger = seen(larger, {2: AXES[3:]})
    assert torch.equal(larger.score(AXES[None], None)[..., [0, 1, 3]], gate.score(AXES[None], None))
