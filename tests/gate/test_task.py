"""A table routes a known task; it starts at the oracle and may leave it."""

import torch

from pmemx.core.bank import BankShape
from pmemx.gate.oracle import OracleGate
from pmemx.gate.task import TaskGate

SHAPE = BankShape(("law", "botany", "sums"), {"layers.0.up_proj": 4}, 4)
NOTHING = torch.zeros(5, 1, 0)


def test_starts_with_the_choices_of_the_oracle():
    domain = torch.tensor([0, 1, 2, 3, -1])
    ours, oracle = TaskGate(SHAPE).score(NOTHING, domain), OracleGate(SHAPE).score(NOTHING, domain)
    assert torch.equal(ours.argmax(dim=-1), oracle.argmax(dim=-1))
    assert torch.allclose(ours[1, 0], torch.tensor([0.0, 5.0, 0.0, 0.0]))


def test_an_unknown_task_goes_to_no_expert_at_all():
    gate = TaskGate(SHAPE)
    gate.table.data.normal_()
    for domain in (None, torch.full((5,), -1)):
        assert torch.equal(gate.score(NOTHING, domain).softmax(dim=-1)[:, 0], torch.eye(4)[:1].expand(5, 4))


def test_a_task_learns_from_its_own_rows_alone():
    gate = TaskGate(SHAPE)
    gate.score(NOTHING, torch.tensor([2, 2, -1, 2, -1]))[..., 1].sum().backward()
    assert torch.equal(
        gate.table.grad, torch.zeros(4, 4).index_put((torch.tensor([2]), torch.tensor([1])), torch.tensor(3.0))
    )
