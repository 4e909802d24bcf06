"""Every conf/adapter/*.yaml builds an adapter that trains beside an untouched base."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from transformers import LlamaConfig, LlamaForCausalLM

from pmemx.core.adapter import Adapter
from pmemx.core.block import BlockCard, CapabilityBlock
from pmemx.core.canonical import digest
from pmemx.core.digest import fingerprint
from pmemx.core.peft_config import rank_and_scale

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(params=sorted(path.stem for path in (CONF / "adapter").glob("*.yaml")))
def adapter(request: pytest.FixtureRequest) -> Adapter:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose(overrides=[f"+adapter={request.param}"]).adapter)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_it_is_an_adapter_with_a_digest(adapter: Adapter) -> None:
    assert isinstance(adapter, Adapter)
    assert len(digest(adapter)) == 64


def test_it_trains_is_extracted_restored_and_removed(adapter: Adapter) -> None:
    base, ids = llama(), torch.arange(24).reshape(2, 12)
    identity = fingerprint(base)
    with torch.no_grad():
        expected = base(input_ids=ids).logits
    adapted = adapter.inject(base, seed=0)
    torch.testing.assert_close(adapted(input_ids=ids).logits, expected, atol=1e-5, rtol=0)
    parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.05)
    for _ in range(2):
        adapted(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    factors, config = adapter.extract(adapted)
    adapted.eval()
    with torch.no_grad():
        trained = adapted(input_ids=ids).logits
    assert not torch.allclose(trained, expected, atol=1e-3)
    block = CapabilityBlock(BlockCard("x", "x", identity, peft_config=config), factors)
    assert block.num_parameters == sum(parameter.numel() for parameter in parameters)
    assert all(rank_and_scale(config, site) == (item.rank, item.scale) for site, item in factors.items())
    assert fingerprint(adapter.remove(adapted)) == identity
    again = adapter.inject(base, seed=1).eval()
    adapter.restore(again, factors)
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, trained)
        assert torch.equal(adapter.remove(again)(input_ids=ids).logits, expected)
