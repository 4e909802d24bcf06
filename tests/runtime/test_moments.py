"""Second moments of what sites read, against hidden states of rows without padding; nothing stays behind."""

import pytest
import torch
from tiny_models import VOCAB, block, logits
from torch import nn
from transformers import LlamaForCausalLM

from pmemx.core.bank import ExpertBank
from pmemx.core.encoding import Encoded
from pmemx.core.errors import DataError, IncompatibleBlock
from pmemx.runtime.attach import attached
from pmemx.runtime.moments import second_moments

SITES = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj")


def nothing(steps: int = 1, note: str = "") -> None: ...


@pytest.fixture(scope="module")
def rows() -> list[Encoded]:
    """Eleven rows of 2 to 12 tokens."""
    generator = torch.Generator().manual_seed(5)
    lengths = (7, 2, 12, 5, 5, 9, 3, 11, 4, 8, 6)
    return [
        Encoded(tuple(torch.randint(3, VOCAB, (length,), generator=generator).tolist()), length // 2)
        for length in lengths
    ]


def read(model: nn.Module, rows: list[Encoded], batch_size: int = 4, sites=SITES) -> dict[str, torch.Tensor]:
    return second_moments(model, sites, rows, pad=0, batch_size=batch_size, advance=nothing)


@torch.no_grad()
def by_hand(model: LlamaForCausalLM, rows: list[Encoded]) -> dict[str, torch.Tensor]:
    """What the queries of both layers read: normed hidden states, one row at a time, without padding."""
    xs: dict[str, list[torch.Tensor]] = {site: [] for site in SITES[:2]}
    for row in rows:
        ids = torch.tensor([row.ids])
        hidden = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
        for site, layer, state in zip(xs, model.model.layers, hidden, strict=False):
            xs[site].append(layer.input_layernorm(state)[0].double())
    return {site: torch.cat(x).T @ torch.cat(x) / len(torch.cat(x)) for site, x in xs.items()}


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def test_they_are_means_over_the_tokens_that_are_not_padding(llama, rows):
    found, reference = read(llama, rows), by_hand(llama, rows)
    for site, expected in reference.items():
        assert (found[site].dtype, found[site].device.type) == (torch.float32, "cpu")
        assert (found[site] - expected).abs().max() < 1e-5 * expected.abs().max()
    assert found[SITES[2]].shape == (48, 48)


def test_an_attached_expert_changes_what_later_layers_read(llama, rows):
    base = read(llama, rows)
    for number in (1, 2):
        with attached(llama, ExpertBank([block(llama, number)]), weights=[1.0]):
            found, reference = read(llama, rows), by_hand(llama, rows)
        for site, expected in reference.items():
            assert (found[site] - expected).abs().max() < 1e-5 * expected.abs().max()
        assert torch.equal(found[SITES[0]], base[SITES[0]])
        assert (found[SITES[1]] - base[SITES[1]]).abs().max() > 0.01


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batches_do_not_matter(llama, rows, batch_size):
    found, other = read(llama, rows, batch_size), read(llama, rows[::-1])
    for site in SITES:
        assert (found[site] - other[site]).abs().max() < 1e-5 * other[site].abs().max()


def test_every_row_is_told(llama, rows):
    told: list[int] = []

    def advance(steps: int = 1, note: str = "") -> None:
        told.append(steps)

    second_moments(llama, SITES, rows, pad=0, batch_size=4, advance=advance)
    assert told == [4, 4, 3]


def test_the_model_is_afterwards_what_it_was(llama, rows, ids):
    before, count = logits(llama, ids), hooks(llama)
    read(llama, rows)
    assert hooks(llama) == count and torch.equal(logits(llama, ids), before)
    with pytest.raises(IndexError):
        read(llama, [Encoded((VOCAB + 1,), 0)])
    assert hooks(llama) == count and torch.equal(logits(llama, ids), before)


def test_a_model_of_half_precision_is_summed_in_float32(llama, rows):
    half = LlamaForCausalLM(llama.config).eval().requires_grad_(False)
    half.load_state_dict(llama.state_dict())
    found, exact = read(half.to(torch.bfloat16), rows), read(llama, rows)
    for site in SITES:
        assert found[site].dtype == torch.float32
        assert (found[site] - exact[site]).norm() < 0.02 * exact[site].norm()


class TestRefusals:
    def test_no_rows(self, llama):
        with pytest.raises(DataError, match="no rows whose second moments could be taken"):
            read(llama, [])

    def test_a_site_of_another_model(self, llama, rows):
        with pytest.raises(IncompatibleBlock, match=r"'model\.layers\.7\.q' is no part of the model"):
            read(llama, rows, sites=("model.layers.7.q",))

    def test_a_part_that_no_pass_reaches(self, rows):
        class Idle(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.idle = nn.Linear(2, 2)

            def forward(self, input_ids, attention_mask, use_cache): ...

        with pytest.raises(IncompatibleBlock, match="no pass of the model reaches 'idle'"):
            read(Idle(), rows, sites=("idle",))
