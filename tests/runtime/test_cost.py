"""What an experiment on a busy machine cannot blur: operations, bytes and passes are counted, not timed."""

from collections import Counter

import pytest
import torch
from kv_cache import CACHE, cache_of
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from pmemx.core.bank import ExpertBank
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.gate import ContextGate
from pmemx.core.mix import DenseMix
from pmemx.core.routing import Routing
from pmemx.gate.linear import LinearGate
from pmemx.gate.oracle import OracleGate
from pmemx.gate.uniform import UniformGate
from pmemx.runtime.attach import attached
from pmemx.select.softmax import Softmax
from pmemx.select.top_k import TopK

WIDTH, MLP, RANK, ROWS, TOKENS = 48, 64, 3, 4, 16


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=WIDTH,
        intermediate_size=MLP,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def bank_of(llama: LlamaForCausalLM, size: int) -> ExpertBank:
    generator = torch.Generator().manual_seed(0)
    linear = {
        name: module
        for name, module in llama.named_modules()
        if isinstance(module, torch.nn.Linear)
        if "layers" in name
    }

    def factors(layer: torch.nn.Linear) -> LoraFactors:
        A = torch.randn(RANK, layer.in_features, generator=generator)
        return LoraFactors(A, torch.randn(layer.out_features, RANK, generator=generator), 0.1)

    return ExpertBank(
        [
            CapabilityBlock(BlockCard(name=f"e{n}", domain="d", base=""), {s: factors(m) for s, m in linear.items()})
            for n in range(size)
        ]
    )


class Counting(TorchDispatchMode):
    """Counts operations by name and remembers the largest tensor that one made."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations[str(func)] += 1
        for tensor in out if isinstance(out, tuple | list) else [out]:
            # A view of the bank is no allocation.
            if isinstance(tensor, torch.Tensor) and not tensor._is_view():
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 31, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))


def counted(llama, bank, gate, select, ids, *, passes: int = 1, domain=None, **settings) -> Counting:
    with (
        attached(llama, bank, gate=gate, select=select, **settings) as routed,
        torch.no_grad(),
        Counting() as counting,
        routed.given(domain=domain),
    ):
        for _ in range(passes):
            llama(input_ids=ids, use_cache=False)
    return counting


@pytest.mark.parametrize("select", [TopK(k=1), TopK(k=2)], ids=["top-1", "top-2"])
def test_a_sequence_decision_takes_the_same_operations_whatever_the_bank_holds(llama, ids, select):
    counts = []
    for size in (8, 128):
        bank = bank_of(llama, size)
        domain = torch.tensor([1, 3, 8, 2])
        counts.append(counted(llama, bank, OracleGate(bank.shape(WIDTH)), select, ids, domain=domain).operations)
    assert counts[0] == counts[1]


def test_a_sequence_decision_adds_two_products_and_two_gathers_a_site(llama, ids):
    bank = bank_of(llama, 8)
    with torch.no_grad(), Counting() as base:
        llama(input_ids=ids, use_cache=False)
    gate = OracleGate(bank.shape(WIDTH))
    routed = counted(llama, bank, gate, TopK(), ids, domain=torch.tensor([1, 3, 8, 2])).operations
    sites = len(bank.site_names)
    added = routed - base.operations
    assert added["aten.bmm.default"] == added["aten.baddbmm_.default"] == sites
    assert added["aten.index_select.default"] == 2 * sites
    # The rows of the layout that all sites share.
    assert added["aten.index.Tensor"] == 2
    assert added["aten.mm.default"] == added["aten.add.Tensor"] == added["aten.clone.default"] == 0


class Everywhere(ContextGate):
    """A token-level decision that differs from token to token."""

    def read(self, hidden):
        return hidden[..., : self.shape.num_choices]

    def score(self, pooled, domain):
        return pooled


GATES = {
    "sequence": (OracleGate, {}, TopK()),
    "soft sequence": (UniformGate, {}, Softmax()),
    "soft token": (Everywhere, {"granularity": "token"}, Softmax()),
    "top-2 token": (Everywhere, {"granularity": "token"}, TopK(k=2)),
    "site token": (LinearGate, {"granularity": "token"}, Softmax()),
}


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("train", [False, True], ids=["serve", "train"])
def test_no_tensor_of_tokens_times_experts_times_width_is_ever_made(llama, ids, name, train):
    kind, arguments, select = GATES[name]
    bank = bank_of(llama, 32)
    gate = kind(bank.shape(WIDTH), **arguments)
    with (
        attached(llama, bank, gate=gate, select=select) as routed,
        Counting() as counting,
        torch.set_grad_enabled(train),
        routed.given(domain=torch.tensor([1, 3, 8, 2])),
    ):
        loss = llama(input_ids=ids, use_cache=False).logits.square().mean()
        if train and loss.requires_grad:
            loss.backward()
    # Nothing is larger than the rows of all experts for every token (or the bank itself, which is gathered by no one).
    assert counting.largest <= ROWS * TOKENS * max(32 * RANK, MLP)
    assert counting.largest < ROWS * TOKENS * 32 * WIDTH


def test_training_a_soft_gate_saves_rank_width_only(llama, ids):
    bank = bank_of(llama, 32)
    gate = LinearGate(bank.shape(WIDTH), granularity="token")
    saved: list[int] = []
    own = {
        tensor.untyped_storage().data_ptr() for tensor in (*bank.state_dict().values(), *llama.state_dict().values())
    }

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own and tensor.shape[-1] in (WIDTH, MLP):
            saved.append(tensor.numel())
        return tensor

    site = dict(bank.items())["model.layers.0.mlp.up_proj"]
    x = torch.randn(ROWS, TOKENS, WIDTH)
    weight = gate("model.layers.0.mlp.up_proj", x.requires_grad_()).softmax(dim=-1)[..., 1:]
    mix = DenseMix(Routing.of_weights(weight), "after")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        mix.add(torch.zeros(ROWS, TOKENS, MLP), x, site).sum().backward()
    assert saved == []


def test_fixed_weights_are_gathered_once_for_all_passes(llama, ids):
    bank = bank_of(llama, 8)
    with attached(llama, bank, weights=[1.0, 0.5] + [0.0] * 6), torch.no_grad():
        with Counting() as first:
            llama(input_ids=ids, use_cache=False)
        with Counting() as second:
            llama(input_ids=ids, use_cache=False)
    gathered = 2 * len(bank.site_names)
    assert first.operations["aten.index_select.default"] - second.operations["aten.index_select.default"] == gathered
    assert second.operations["aten.mm.default"] == first.operations["aten.mm.default"]


def test_a_decoding_step_gathers_nothing_for_a_decision_about_the_prompt(llama, ids):
    bank = bank_of(llama, 8)
    gate = OracleGate(bank.shape(WIDTH))
    with (
        attached(llama, bank, gate=gate, select=TopK()) as routed,
        torch.no_grad(),
        routed.given(domain=torch.tensor([1, 3, 8, 2])),
    ):
        cache = cache_of(llama(input_ids=ids, use_cache=True))
        with Counting() as counting:
            llama(input_ids=ids[:, :1], **{CACHE: cache}, use_cache=True)
    assert counting.operations["aten.index.Tensor"] == counting.operations["aten.index_select.default"] == 0
    assert counting.operations["aten.baddbmm_.default"] == len(bank.site_names)
