"""Context distillation by hand and against scipy."""

import pytest
import torch
from scipy.special import log_softmax, rel_entr

from pmemx.core.distill import Predictions
from pmemx.core.errors import ConfigError
from pmemx.distill.context import ContextKL, DeepContext

LABELS = torch.tensor([0, 1])


def test_kl_by_hand():
    teacher = Predictions(torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log())
    student = Predictions(torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log())
    # Position 0: 0.5 ln 2 + 0.5 ln(2/3); position 1: 0.
    assert ContextKL()(student, teacher, LABELS).item() == pytest.approx(0.14384 / 2, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_kl_equals_scipy(temperature):
    generator = torch.Generator().manual_seed(0)
    t, s = torch.randn(6, 9, generator=generator), torch.randn(6, 9, generator=generator)
    p, q = (torch.tensor(log_softmax(x.numpy() / temperature, axis=1)).exp().numpy() for x in (t, s))
    expected = temperature**2 * rel_entr(p, q).sum(axis=1).mean()
    ours = ContextKL(temperature=temperature)(Predictions(s), Predictions(t), torch.zeros(6, dtype=torch.long))
    assert ours.item() == pytest.approx(expected, rel=1e-5)


def test_the_hidden_term_by_hand():
    same = torch.zeros(2, 3)
    teacher = Predictions(same, torch.tensor([[[2.0, 2.0], [2.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]]]))
    student = Predictions(same, torch.tensor([[[3.0, 1.0], [2.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]]]))
    # Layer 0: mean |difference| 0.5 over mean |teacher| 2; layer 1: 0.
    assert DeepContext(logits=0.0)(student, teacher, LABELS).item() == pytest.approx(0.25 / 2)


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ConfigError, match="temperature 0 is not positive"):
        ContextKL(temperature=0)
