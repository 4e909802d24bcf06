"""X-LoRA gives PEFT's scalings, logits and gradients for eight experts of mixed alpha."""

import pytest
import torch
from peft import XLoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch.nn import functional as F

from pmemx.core.bank import BankShape
from pmemx.core.errors import ConfigError
from pmemx.gate.xlora import XLoraGate
from pmemx.runtime.attach import attached
from pmemx.select.softmax import Softmax
from pmemx.select.top_k import TopK
from tests.gate.conftest import copied
from tests.rounding import rounding


def peft_model(llama, folders, layerwise, depth):
    config = XLoraConfig(
        task_type="CAUSAL_LM",
        hidden_size=32,
        adapters={str(number): str(path) for number, path in enumerate(folders)},  # PEFT looks them up by these numbers
        layerwise_scalings=layerwise,
        xlora_depth=depth,
        xlora_size=24,
        xlora_dropout_p=0.2,
    )
    torch.manual_seed(5)
    return get_peft_model(copied(llama), config).eval()


def sites_of(theirs) -> list[str]:
    """Site names in the order in which PEFT numbers them."""
    modules = theirs.base_model.lora_model.model.named_modules()
    return [name for name, module in modules if isinstance(module, LoraLayer)]


@pytest.mark.parametrize(("layerwise", "depth"), [(False, 1), (True, 1), (True, 3)])
class TestPeft:
    def made(self, llama, folders, bank, layerwise, depth):
        theirs = peft_model(llama, folders, layerwise, depth)
        order = [sites_of(theirs).index(site) for site in bank.site_names]
        gate = XLoraGate(bank.shape(32), layerwise=layerwise, depth=depth, size=24).eval()
        state = dict(theirs.base_model.internal_xlora_classifier.layers.state_dict())
        if layerwise:  # PEFT's rows are by its own order of the sites
            last = f"{len(gate.layers) - 1}."
            for key in (last + "weight", last + "bias"):
                state[key] = state[key].unflatten(0, (len(order), -1))[order].flatten(0, 1)
        gate.layers.load_state_dict(state)
        return theirs, gate, order

    def test_scalings_and_logits(self, llama, folders, bank, ids, layerwise, depth):
        theirs, gate, order = self.made(llama, folders, bank, layerwise, depth)
        with torch.no_grad():
            expected = theirs(input_ids=ids).logits
            scalings = theirs.base_model.get_latest_scalings()[:, :, order]
            with attached(llama, bank, gate=gate, select=Softmax()) as routed:
                scores = routed.decide(ids, torch.ones_like(ids))
                logits = routed.model(input_ids=ids).logits
        if not layerwise:
            scores = scores[:, :, None].expand(-1, -1, len(order), -1)
        share = F.softmax(scores, dim=-1)
        assert share[..., 0].eq(0).all()
        assert (share[..., 1:] - scalings).abs().max() < 2e-6
        assert (logits - expected).abs().max() < 2e-6

    def test_logits_with_the_best_two(self, llama, folders, bank, ids, layerwise, depth):
        theirs, gate, _ = self.made(llama, folders, bank, layerwise, depth)
        theirs.base_model.set_topk_lora(2)
        with torch.no_grad(), attached(llama, bank, gate=gate, select=TopK(k=2, renormalise=False)) as routed:
            assert (routed.model(input_ids=ids).logits - theirs(input_ids=ids).logits).abs().max() < 2e-6

    def test_gradients_of_the_classifier(self, llama, folders, bank, ids, layerwise, depth):
        theirs, gate, order = self.made(llama, folders, bank, layerwise, depth)
        F.cross_entropy(theirs(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        with attached(llama, bank, gate=gate, select=Softmax()) as routed:
            logits = routed.model(input_ids=ids).logits
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        expected = dict(theirs.base_model.internal_xlora_classifier.layers.named_parameters())
        for name, parameter in gate.layers.named_parameters():
            grad = expected[name].grad
            if layerwise and name.startswith(f"{len(gate.layers) - 1}."):
                grad = grad.unflatten(0, (len(order), -1))[order].flatten(0, 1)
            # Every token of the batch adds its own part to the gradient.
            assert (parameter.grad - grad).norm() <= rounding(grad.norm(), ids.numel())


def test_no_expert_scores_a_constant_where_it_may_be_chosen():
    shape = BankShape(("law", "botany"), {"layers.0.up_proj": 4, "layers.1.up_proj": 4}, 4)
    for layerwise, size in ((False, (2, 3, 3)), (True, (2, 3, 2, 3))):
        scores = XLoraGate(shape, layerwise=layerwise, abstain=0.25).eval().score(torch.randn(2, 3, 4), None)
        assert scores.shape == size and scores[..., 0].eq(0.25).all()


def test_a_classifier_without_layers_is_refused():
    with pytest.raises(ConfigError, match=r"gate\.depth = 0"):
        XLoraGate(BankShape(("law",), {"layers.0.up_proj": 4}, 4), depth=0)
