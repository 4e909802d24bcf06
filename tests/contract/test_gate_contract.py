"""Laws of every gate in conf/gate."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load, save

from pmemx.core.bank import BankShape
from pmemx.core.gate import ContextGate, SiteGate
from pmemx.stage.build import build

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "conf" / "gate").glob("*.yaml"))
SITES = {"model.layers.0.mlp.up_proj": 12, "model.layers.1.mlp.down_proj": 20}


def made(file: Path, experts: int = 8):
    shape = BankShape(tuple(f"e{i}" for i in range(experts)), SITES, 16)
    torch.manual_seed(0)
    gate = build(OmegaConf.to_container(OmegaConf.load(file)))(shape)
    for parameter in gate.parameters():
        parameter.data += torch.randn_like(parameter) * 0.3
    return gate.eval()


def scores(gate, scale: float = 1.0, token: int = 7) -> list[torch.Tensor]:
    """One tensor a site, or one in all for a context gate."""
    generator = torch.Generator().manual_seed(1)
    if isinstance(gate, SiteGate):
        return [gate(site, torch.randn(3, token, width, generator=generator) * scale) for site, width in SITES.items()]
    assert isinstance(gate, ContextGate)
    prompt = torch.arange(token) < torch.tensor([[token], [3], [1]])
    hidden = torch.randn(3, token, 16, generator=generator) * scale
    return [gate(hidden, prompt, torch.tensor([0, len(gate.shape.experts), -1]))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
class TestGate:
    def test_scores_every_choice_of_every_row(self, file):
        gate = made(file)
        for found in scores(gate):
            token = 1 if isinstance(gate, ContextGate) else 7
            assert found.shape == (3, token, 9)

    def test_is_finite_on_huge_inputs(self, file):
        assert all(found.isfinite().all() for found in scores(made(file), scale=1e4))

    def test_keeps_its_state_through_a_file(self, file):
        gate, other = made(file), made(file)
        for parameter in other.parameters():
            parameter.data.zero_()
        other.load_state_dict(load(save({k: v.contiguous() for k, v in gate.state_dict().items()})))
        assert all(torch.equal(a, b) for a, b in zip(scores(gate), scores(other), strict=True))

    def test_sends_a_gradient_to_every_parameter(self, file):
        gate = made(file)
        sum(found.logsumexp(dim=-1).sum() for found in scores(gate)).backward() if list(gate.parameters()) else None
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gate.parameters() if p.requires_grad)

    def test_a_score_depends_on_no_later_token(self, file):
        gate = made(file)
        if isinstance(gate, SiteGate):
            x = torch.randn(2, 6, 12)
            changed = torch.cat([x[:, :4], torch.randn(2, 2, 12)], dim=1)
            site = next(iter(SITES))
            assert torch.equal(gate(site, x)[:, :4], gate(site, changed)[:, :4])
        else:
            hidden = torch.randn(2, 6, 16)
            changed = torch.cat([hidden[:, :4], torch.randn(2, 2, 16)], dim=1)
            prompt = (torch.arange(6) < 4).expand(2, 6)
            assert torch.equal(gate(hidden, prompt, None), gate(changed, prompt, None))

    def test_padding_on_the_left_changes_no_score(self, file):
        gate = made(file)
        if isinstance(gate, ContextGate):
            hidden = torch.randn(2, 5, 16)
            prompt = torch.ones(2, 5, dtype=torch.bool)
            padded = torch.cat([torch.randn(2, 3, 16), hidden], dim=1)
            mask = torch.cat([torch.zeros(2, 3, dtype=torch.bool), prompt], dim=1)
            assert torch.allclose(gate(hidden, prompt, None), gate(padded, mask, None), atol=1e-6)
        else:
            x = torch.randn(1, 5, 12)
            site = next(iter(SITES))
            assert torch.allclose(
                gate(site, x), gate(site, torch.cat([torch.randn(1, 3, 12), x], dim=1))[:, 3:], atol=1e-6
            )

    def test_works_for_a_bank_of_one(self, file):
        assert all(found.shape[-1] == 2 for found in scores(made(file, experts=1)))
