"""Laws of every objective in conf/distill."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from pmemx.core.distill import Distill, Predictions
from pmemx.stage.build import build

FILES = sorted((Path(__file__).parents[2] / "conf" / "distill").glob("*.yaml"))
LABELS = torch.randint(0, 11, (5,), generator=torch.Generator().manual_seed(2))


def objective(file: Path) -> Distill:
    return build(OmegaConf.to_container(OmegaConf.load(file)))


def predictions(seed: int, *, grad: bool = False) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 11, generator=generator).requires_grad_(grad)
    hidden = torch.randn(3, 5, 7, generator=generator).requires_grad_(grad)
    return Predictions(logits, hidden)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
class TestDistill:
    def test_is_a_positive_number_of_nats(self, file):
        loss = objective(file)(predictions(0), predictions(1), LABELS)
        assert loss.shape == () and loss > 0

    def test_is_zero_when_student_and_teacher_agree(self, file):
        distill = objective(file)
        if not distill.needs_teacher:
            sure = Predictions(torch.nn.functional.one_hot(LABELS, 11).float() * 100)
            assert distill(sure, None, LABELS) < 1e-6
        else:
            assert abs(distill(predictions(0), predictions(0), LABELS)) < 1e-6

    def test_teaches_the_student_and_not_the_teacher(self, file):
        student, teacher = predictions(0, grad=True), predictions(1, grad=True)
        distill = objective(file)
        distill(student, teacher, LABELS).backward()
        assert student.logits.grad is not None and student.logits.grad.abs().sum() > 0
        assert teacher.logits.grad is None and (teacher.hidden is None or teacher.hidden.grad is None)
        if distill.needs_hidden:
            assert student.hidden is not None and student.hidden.grad is not None

    def test_is_a_mean_over_positions(self, file):
        def twice(p: Predictions) -> Predictions:
            assert p.hidden is not None
            return Predictions(torch.cat([p.logits] * 2), torch.cat([p.hidden] * 2, dim=1))

        distill = objective(file)
        once = distill(predictions(0), predictions(1), LABELS)
        doubled = distill(twice(predictions(0)), twice(predictions(1)), torch.cat([LABELS] * 2))
        assert torch.allclose(once, doubled, atol=1e-6)
