"""A merged block in a model: attached, and read back by PEFT, it answers as PEFT's own merge does."""

from copy import deepcopy

import pytest
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM
from weighted_experts import parents, peft_model

from pmemx.core.bank import ExpertBank
from pmemx.core.merge import Merge
from pmemx.core.peft_folder import linear_widths, write_peft_folder
from pmemx.merge.deltas import Deltas
from pmemx.merge.elect import Elect
from pmemx.merge.entrywise import EntrywiseMerge
from pmemx.merge.linear import Linear
from pmemx.merge.magnitude import Magnitude
from pmemx.runtime.attach import attached

MERGES: dict[str, Merge] = {
    "cat": Linear(),
    "svd": Linear(rank="largest"),
    "ties_svd": EntrywiseMerge(combine=Elect(), prune=Magnitude(density=0.3), space=Deltas(), rank="largest"),
}


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.randint(3, 61, (4, 9), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


@pytest.mark.parametrize("combination_type", MERGES)
def test_logits_are_those_of_peft(combination_type, llama, tmp_path):
    widths = {site: found for site, found in linear_widths(llama).items() if site.endswith(("q_proj", "up_proj"))}
    weights = [weight / 8 for weight in range(1, 9)]
    experts = parents(weights=weights, widths=widths)
    block = MERGES[combination_type](experts, name="merged", generator=torch.Generator()).block
    with attached(llama, ExpertBank([block]), weights=[1.0]):
        ours = logits(llama)
    model = peft_model(experts, base=deepcopy(llama))
    density = {"density": 0.3} if combination_type == "ties_svd" else {}
    names = [f"px{number}" for number in range(8)]
    model.add_weighted_adapter(names, weights, "pxmerged", combination_type, **density)
    model.set_adapter("pxmerged")
    assert (ours - logits(llama)).abs().max() > 0.1
    assert (ours - logits(model.eval())).abs().max() < 2e-6
    again = PeftModel.from_pretrained(deepcopy(llama), write_peft_folder(block, tmp_path / "merged"))
    assert (ours - logits(again.eval())).abs().max() < 2e-6
