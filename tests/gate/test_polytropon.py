"""Polytropon's shares, logits, samples and gradients are PEFT's, for eight skills and several tasks in a batch."""

import torch
from peft import PolyConfig, get_peft_model
from peft.tuners.poly.router import PolyRouter
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from pmemx.core.bank import BankShape, ExpertBank
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.gate.polytropon import PolytroponGate
from pmemx.runtime.attach import attached
from pmemx.select.softmax import Softmax
from tests.gate.conftest import copied

SHAPE = BankShape(("law", "botany", "sums"), {"layers.0.up_proj": 4, "layers.1.up_proj": 4}, 4)
NOTHING = torch.zeros(5, 1, 0)
RANK, SKILLS = 4, 8


def peft_model(llama: LlamaForCausalLM, splits: int = 1):
    """Poly with random skills and logits."""
    config = PolyConfig(
        r=RANK,
        n_tasks=SKILLS,
        n_skills=SKILLS,
        n_splits=splits,
        target_modules=["q_proj", "v_proj", "up_proj", "down_proj"],
        init_weights=False,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(copied(llama), config)
    torch.manual_seed(6)
    for name, parameter in model.named_parameters():
        if "poly_" in name:
            parameter.data.normal_(std=1.5 if "router" in name else 0.3)
    return model.eval()


def poly_layers(theirs) -> dict:
    """PEFT's layers by site."""
    return {name: m for name, m in theirs.base_model.model.named_modules() if hasattr(m, "poly_lora_A")}


def bank_of(theirs) -> ExpertBank:
    """PEFT's skills as experts: A and B [split, skill, ...] put together again, scale 1/r."""
    blocks = []
    for skill in range(SKILLS):
        factors = {}
        for site, layer in poly_layers(theirs).items():
            A, B = layer.poly_lora_A["default"].data[:, skill], layer.poly_lora_B["default"].data[:, skill]
            factors[site] = LoraFactors(A.flatten(0, 1).T.clone(), B.transpose(1, 2).flatten(0, 1).clone(), 1 / RANK)
        blocks.append(CapabilityBlock(BlockCard(name=f"e{skill}", domain="d", base=""), factors))
    return ExpertBank(blocks)


def logits_of(theirs, bank: ExpertBank) -> torch.Tensor:
    """PEFT's [task, split * skill] in the order of our sites: [task, site, split * skill]."""
    routers = {site: layer.poly_router["default"].module_logits.data for site, layer in poly_layers(theirs).items()}
    return torch.stack([routers[site] for site in bank.site_names], dim=1)


def test_by_hand():
    """Logits 0, log 3 and -log 3 are sigmoids 1/2, 3/4 and 1/4: shares 1/3, 1/2 and 1/6."""
    gate = PolytroponGate(SHAPE).eval()
    gate.logits.data[1, 0] = torch.tensor([1.0, 3.0, 1 / 3]).log()
    share = gate.score(NOTHING, torch.tensor([2, 2, -1, 0, 1])).softmax(dim=-1)
    assert torch.allclose(share[0, 0, 0], torch.tensor([0, 1 / 3, 1 / 2, 1 / 6]), atol=1e-6)
    assert torch.equal(share[0], share[1])
    assert torch.allclose(share[4, 0], torch.tensor([0, 1 / 3, 1 / 3, 1 / 3]).expand(2, 4), atol=1e-3)


def test_a_row_without_a_task_goes_to_no_expert_at_all():
    gate = PolytroponGate(SHAPE)
    gate.logits.data.normal_()
    for domain in (None, torch.full((5,), -1), torch.zeros(5, dtype=torch.long)):
        for mode in (gate.train(), gate.eval()):
            share = mode.score(NOTHING, domain).softmax(dim=-1)
            assert torch.equal(share, torch.eye(4)[0].expand(5, 1, 2, 4))


def test_a_task_learns_from_its_own_rows_alone():
    gate = PolytroponGate(SHAPE).eval()
    gate.score(NOTHING, torch.tensor([2, 0, -1, 2, -1]))[..., 1].sum().backward()
    assert gate.logits.grad[1, :, 0].gt(0).all()
    assert gate.logits.grad[[0, 2]].eq(0).all() and gate.logits.grad[..., 1:].eq(0).all()


def test_training_draws_anew_for_every_row_around_the_shares():
    """Relaxed Bernoulli samples are on either side of 1/2 as often as the Bernoulli is 0 or 1."""
    torch.manual_seed(0)
    gate = PolytroponGate(SHAPE).train()
    gate.logits.data.fill_(1.0)
    skill = gate.score(torch.zeros(4000, 1, 0), torch.ones(4000, dtype=torch.long))[:, 0, 0, 1:].exp()
    assert skill.std(dim=0).gt(0.2).all()
    # Four standard errors of a share of 4000 draws.
    assert ((skill > 0.5).float().mean(dim=0) - torch.sigmoid(torch.tensor(1.0))).abs().max() < 0.03


def test_training_samples_are_those_of_peft():
    router = PolyRouter(PolyConfig(n_tasks=SKILLS, n_skills=SKILLS)).train()
    router.module_logits.data.normal_(generator=torch.Generator().manual_seed(0))
    sites = {"layers.0.up_proj": 4}
    gate = PolytroponGate(BankShape(tuple(f"e{i}" for i in range(SKILLS)), sites, 4)).train()
    gate.logits.data = router.module_logits.data[:, None].clone()
    tasks = torch.tensor([3, 0, 7, 3, 5])
    torch.manual_seed(1)
    expected = router(tasks, None)[:, 0]
    torch.manual_seed(1)
    share = gate.score(NOTHING, tasks + 1).softmax(dim=-1)[:, 0, 0, 1:]
    assert (share - expected).abs().max() < 1e-6


class TestPeft:
    tasks = torch.tensor([3, 0, 7, 3])

    def test_logits(self, llama, ids):
        theirs = peft_model(llama)
        bank = bank_of(theirs)
        gate = PolytroponGate(bank.shape(32)).eval()
        gate.logits.data = logits_of(theirs, bank)
        with torch.no_grad(), attached(llama, bank, gate=gate, select=Softmax(), mixing="before") as routed:
            with routed.given(domain=self.tasks + 1):
                ours = routed.model(input_ids=ids).logits
            expected = theirs(input_ids=ids, task_ids=self.tasks).logits
        assert (ours - expected).abs().max() < 1e-5
        with torch.no_grad():
            assert (ours - llama(input_ids=ids).logits).abs().max() > 0.1

    def test_gradients_of_the_allocation(self, llama, ids):
        theirs = peft_model(llama)
        bank = bank_of(theirs)
        gate = PolytroponGate(bank.shape(32)).eval()
        gate.logits.data = logits_of(theirs, bank)
        labels = ids[:, 1:].flatten()
        F.cross_entropy(theirs(input_ids=ids, task_ids=self.tasks).logits[:, :-1].flatten(0, 1), labels).backward()
        with (
            attached(llama, bank, gate=gate, select=Softmax(), mixing="before") as routed,
            routed.given(domain=self.tasks + 1),
        ):
            F.cross_entropy(routed.model(input_ids=ids).logits[:, :-1].flatten(0, 1), labels).backward()
        layers = poly_layers(theirs)
        expected = torch.stack([layers[s].poly_router["default"].module_logits.grad for s in bank.site_names], dim=1)
        assert (gate.logits.grad - expected).norm() / expected.norm() < 1e-5
