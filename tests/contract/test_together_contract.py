"""Laws of every mixture in conf/together: structure as published, trained together with its gate, served from its blocks."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from pmemx.core.bank import ExpertBank
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.encoding import Encoded, collate
from pmemx.core.gate import Gate
from pmemx.core.trainable import TrainableFactors
from pmemx.lit.gate_module import GateBatch
from pmemx.lit.settings import TrainerSettings
from pmemx.lit.together_module import TogetherModule
from pmemx.runtime.attach import attached
from pmemx.runtime.linear_sites import linear_sites
from pmemx.select.top_k import TopK
from pmemx.stage.bank import load_gate, save_gate
from pmemx.stage.build import build
from pmemx.stage.together import Together
from pmemx.store.governed import GovernedStore

FILES = sorted((Path(__file__).parents[2] / "conf" / "together").glob("*.yaml"))
WIDTH, LAYERS, STEPS = 16, 4, 6
FEED_FORWARD, ATTENTION = ("gate_proj", "up_proj", "down_proj"), ("q_proj", "k_proj", "v_proj", "o_proj")
PAPERS = {
    # Experts at a site of each of the four layers, rank and scale.
    "mixlora": ({**dict.fromkeys(FEED_FORWARD, (8,) * 4), **dict.fromkeys(ATTENTION, (1,) * 4)}, 16, 2.0),
    "loramoe": (dict.fromkeys(FEED_FORWARD, (8,) * 4), 4, 8.0),
    "mola": (dict.fromkeys((*FEED_FORWARD, *ATTENTION), (2, 4, 6, 8)), 8, 2.0),
    "hydralora": (dict.fromkeys(FEED_FORWARD, (4,) * 4), 4, 8.0),
}


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        initializer_range=0.2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def entry_of(file: Path) -> Together:
    return build(OmegaConf.to_container(OmegaConf.load(file)))


def newborn(entry: Together, llama: LlamaForCausalLM, seed: int = 0) -> list[CapabilityBlock]:
    born = entry.structure.experts(linear_sites(llama), torch.Generator().manual_seed(seed))
    return [CapabilityBlock(BlockCard(f"e{number}", "d", "base"), own) for number, own in enumerate(born)]


def batch() -> GateBatch:
    """Two rows of each of two domains and two of general text, of unequal lengths; the answers follow from the domains."""
    generator = torch.Generator().manual_seed(5)
    rows = []
    for number in range(6):
        prompt = torch.randint(3, 31, (2 + number % 3,), generator=generator).tolist()
        rows.append(Encoded((*prompt, 3 + 5 * (number // 2), 4 + 5 * (number // 2)), len(prompt)))
    return GateBatch(collate(rows, 0), torch.tensor([1, 1, 2, 2, 0, 0]), torch.ones(6, dtype=torch.bool))


def logits(llama: LlamaForCausalLM) -> Tensor:
    rows = batch().rows
    with torch.no_grad():
        return llama(input_ids=rows.ids, attention_mask=rows.attention.long(), use_cache=False).logits


@dataclass
class Trained:
    """What a few steps leave: losses, logits before and after, gradients of a later step, the trained mixture itself."""

    entry: Together
    before: dict[str, Tensor]
    newborn: Tensor
    losses: list[float]
    gradients: dict[str, Tensor | None]
    said: Tensor
    gate: Gate
    blocks: tuple[CapabilityBlock, ...]


@pytest.fixture(scope="module", params=FILES, ids=lambda file: file.stem)
def trained(request, llama) -> Trained:
    entry, before = entry_of(request.param), {name: value.clone() for name, value in llama.state_dict().items()}
    born, losses, logged = newborn(entry, llama), [], {}
    bank = ExpertBank(born)
    torch.manual_seed(0)
    gate = entry.gate(bank.shape(WIDTH))
    with attached(llama, bank, gate=gate, select=entry.select, mixing=entry.mixing) as routed:
        factors = TrainableFactors(bank, born)
        settings = TrainerSettings(steps=STEPS, lr=2e-2, warmup=0, schedule="constant")
        module = TogetherModule(routed, gate, factors, entry.losses, [False, True, False], settings)
        module.log = lambda name, value, **_: logged.update({name: float(value)})  # type: ignore[method-assign]
        module.log_dict = lambda values, **_: logged.update(values)  # type: ignore[method-assign]
        optimizer = module.configure_optimizers()["optimizer"]
        first = logits(llama)
        for _ in range(STEPS):
            optimizer.zero_grad()
            module.training_step(batch(), 0).backward()
            losses.append(float(logged["train/language_model"]))
            optimizer.step()
        gradients = {name: p.grad for name, p in module.named_parameters()}
        factors.bind()
        return Trained(entry, before, first, losses, gradients, logits(llama), gate, factors.blocks())


def test_every_mixture_is_checked_against_its_paper():
    assert [file.stem for file in FILES] == sorted(PAPERS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
class TestStructure:
    def test_experts_stand_at_the_sites_of_the_paper_with_its_rank_and_scale(self, file, llama):
        sites, rank, scale = PAPERS[file.stem]
        born = newborn(entry_of(file), llama)
        standing = Counter(name for block in born for name in block.factors)
        layers = linear_sites(llama).layers
        assert standing == {
            f"{layer}.{part}.{ending}": numbers[place]
            for ending, numbers in sites.items()
            for place, layer in enumerate(layers)
            for part in ["mlp" if ending in FEED_FORWARD else "self_attn"]
        }
        for block in born:
            for name, own in block.factors.items():
                assert own.rank == rank and own.scale == scale and not own.B.any()
                bound = own.A.shape[1] ** -0.5
                assert own.A.abs().max() <= bound and own.A.std() == pytest.approx(bound / 3**0.5, rel=0.35), name

    def test_a_is_drawn_anew_for_every_expert_unless_it_is_shared(self, file, llama):
        born = newborn(entry_of(file), llama)
        drawn = [own.A for block in born for own in block.factors.values()]
        distinct = {id(A) for A in drawn}
        sites = {name for block in born for name in block.factors}
        assert len(distinct) == (len(sites) if file.stem == "hydralora" else len(drawn))
        values = {tuple(A.flatten()[:4].tolist()) for A in drawn}
        assert len(values) == len(distinct)

    def test_the_seed_alone_decides_the_draw(self, file, llama):
        torch.manual_seed(1)
        state = torch.random.get_rng_state()
        one, same, other = (newborn(entry_of(file), llama, seed) for seed in (3, 3, 4))
        assert torch.equal(torch.random.get_rng_state(), state)
        for a, b, c in zip(one, same, other, strict=True):
            for name, own in a.factors.items():
                assert torch.equal(own.A, b.factors[name].A) and not torch.equal(own.A, c.factors[name].A)


class TestTraining:
    def test_newborn_experts_leave_the_base_as_it_is(self, trained, llama):
        assert torch.equal(trained.newborn, logits(llama))

    def test_the_loss_falls(self, trained):
        assert all(later < trained.losses[0] for later in trained.losses[2:])
        assert trained.losses[-1] < 0.8 * trained.losses[0]

    def test_every_parameter_has_a_gradient_but_where_there_is_nothing_to_choose(self, trained):
        standing = Counter(name for block in trained.blocks for name in block.factors)
        alone = [number for number, name in enumerate(trained.gate.shape.sites) if standing[name] == 1]
        for name, gradient in trained.gradients.items():
            assert gradient is not None and gradient.isfinite().all(), name
            if name in [f"gate.weights.{number}" for number in alone]:
                assert not gradient.any(), name
            else:
                assert gradient.any(), name
        assert len(trained.gradients) == 3 * len(standing)

    def test_the_base_stays_what_it_was_bit_for_bit(self, trained, llama):
        after = llama.state_dict()
        assert after.keys() == trained.before.keys()
        assert all(torch.equal(after[name], value) for name, value in trained.before.items())
        assert all(parameter.grad is None for parameter in llama.parameters())

    def test_experts_that_share_a_matrix_still_do_and_no_others_came_to(self, trained):
        for name in {name for block in trained.blocks for name in block.factors}:
            found = [block.factors[name].A for block in trained.blocks if name in block.factors]
            shared = type(trained.entry.structure).__name__ == "HydraLora"
            assert all(torch.equal(A, found[0]) == shared for A in found[1:])

    def test_stored_blocks_and_the_saved_gate_say_the_same_in_a_fresh_bank(self, trained, llama, tmp_path):
        store = GovernedStore(tmp_path / "bank")
        digests = [store.put(block).digest for block in trained.blocks]
        save_gate(trained.gate, tmp_path, "gate")
        bank = ExpertBank([store.get(digest) for digest in digests])
        gate = load_gate(trained.entry.gate, bank.shape(WIDTH), tmp_path, "gate")
        with attached(llama, bank, gate=gate, select=trained.entry.select, mixing=trained.entry.mixing):
            found = logits(llama)
        assert torch.allclose(found, trained.said, atol=1e-5)
        assert (found - trained.newborn).abs().max() > 0.1

    def test_it_says_what_the_dense_sum_of_its_experts_says(self, trained, llama):
        """At the first site that is routed, from the formula alone: softmax over those present, the k best, renormalised."""
        entry, blocks = trained.entry, trained.blocks
        site = next(name for name in trained.gate.shape.sites if name.endswith("up_proj"))
        number = list(trained.gate.shape.sites).index(site)
        weights = dict(trained.gate.named_parameters())[f"weights.{number}"].detach()
        present = [expert for expert, block in enumerate(blocks) if site in block.factors]
        bank, seen = ExpertBank(list(blocks)), {}
        layer = llama.get_submodule(site)
        with attached(llama, bank, gate=trained.gate, select=entry.select, mixing=entry.mixing):
            handle = layer.register_forward_hook(lambda _, given, out: seen.update(x=given[0], y=out))
            logits(llama)
            handle.remove()
        share = (seen["x"] @ weights[present].T).softmax(dim=-1)
        if isinstance(entry.select, TopK):
            least = share.topk(entry.select.k, dim=-1).values[..., -1:]
            share = share.masked_fill(share < least, 0)
            share = share / share.sum(dim=-1, keepdim=True)
        expected = layer.weight @ seen["x"][..., None]
        for place, expert in enumerate(present):
            own: LoraFactors = blocks[expert].factors[site]
            expected = expected + share[..., place, None, None] * own.scale * (own.B @ (own.A @ seen["x"][..., None]))
        attended = batch().rows.attention
        assert torch.allclose(seen["y"][attended], expected[..., 0][attended], atol=1e-5)
