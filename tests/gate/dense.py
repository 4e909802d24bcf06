"""Eight experts of mixed ranks and sites, a naive model that mixes them by dense matrices, and a short training."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from pmemx.core.bank import ExpertBank
from pmemx.core.block import BlockCard, CapabilityBlock, LoraFactors
from pmemx.core.gate import Gate
from pmemx.core.mix import Mixing
from pmemx.core.routing import Observation, Select
from pmemx.runtime.attach import attached

SITES = {
    f"model.layers.{layer}.{site}": widths
    for layer in range(2)
    for site, widths in {
        "self_attn.q_proj": (32, 32),
        "self_attn.v_proj": (32, 16),
        "mlp.up_proj": (32, 48),
        "mlp.down_proj": (48, 32),
    }.items()
}
AnyGate = TypeVar("AnyGate", bound=nn.Module)
Weigh = Callable[[str, Tensor], Tensor]
"""From a site and what it reads: weights [batch, 1 or token, expert]."""


def factors_of(number: int, *, size: float = 0.3) -> dict[str, LoraFactors]:
    """Of expert `number`: rank 1 to 4; 2 and 5 skip up_proj, 7 adapts the second layer alone."""
    generator, rank = torch.Generator().manual_seed(number), 1 + number % 4
    return {
        site: LoraFactors(
            torch.randn(rank, width_in, generator=generator) * size,
            torch.randn(width_out, rank, generator=generator) * size,
            scale=0.5 + number / 8,
        )
        for site, (width_in, width_out) in SITES.items()
        if not (number in (2, 5) and "up_proj" in site) and not (number == 7 and "layers.0" in site)
    }


def block(number: int) -> CapabilityBlock:
    return CapabilityBlock(BlockCard(name=f"e{number}", domain="test", base=""), factors_of(number))


def bank_of_eight() -> ExpertBank:
    return ExpertBank([block(number) for number in range(8)])


def perturbed(gate: AnyGate, size: float = 0.3) -> AnyGate:
    """With weights off their first values."""
    generator = torch.Generator().manual_seed(11)
    for parameter in gate.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=generator)
    return gate.eval()


def outputs(site: str, x: Tensor) -> list[Tensor]:
    """dW_e x of every expert, zero where it skips the site."""
    width_out = SITES[site][1]
    found = [factors_of(number).get(site) for number in range(8)]
    nothing = x.new_zeros(*x.shape[:-1], width_out)
    return [nothing if f is None else x @ (f.scale * f.B.to(x) @ f.A.to(x)).T for f in found]


def by_layer(decide: Weigh) -> Weigh:
    """The first site of a layer decides for it."""
    known: dict[str, Tensor] = {}

    def weigh(site: str, x: Tensor) -> Tensor:
        layer = site.rsplit(".", 2)[0]
        if layer not in known:
            known[layer] = decide(site, x)
        return known[layer]

    return weigh


def logits_by_dense(model: LlamaForCausalLM, ids: Tensor, weigh: Weigh, mixing: Mixing = "after") -> Tensor:
    """Logits of the model with sum_e w_e dW_e x, or (sum_e w_e B_e)(sum_e w_e A_e) x, added at every site."""

    def add(site: str):
        def hook(module, args, y):
            x, weight = args[0], weigh(site, args[0])
            if mixing == "after":
                return y + sum(weight[..., e, None] * out for e, out in enumerate(outputs(site, x)))
            width_in, width_out = SITES[site]
            A, B = x.new_zeros(*weight.shape[:2], 4, width_in), x.new_zeros(*weight.shape[:2], width_out, 4)
            for e in range(8):
                if (f := factors_of(e).get(site)) is not None:
                    A[:, :, : f.rank] += weight[..., e, None, None] * f.A
                    B[..., : f.rank] += weight[..., e, None, None] * f.scale * f.B
            return y + (B @ A @ x[..., None])[..., 0]

        return hook

    handles = [model.get_submodule(site).register_forward_hook(add(site)) for site in SITES]
    try:
        with torch.no_grad():
            return model(input_ids=ids).logits
    finally:
        for handle in handles:
            handle.remove()


def trained(
    model: LlamaForCausalLM,
    ids: Tensor,
    gate: Gate,
    select: Select,
    *,
    right: int,
    lr: float,
    mixing: Mixing = "after",
) -> tuple[Tensor, Tensor]:
    """Mean weight of every expert before and after 30 steps towards the logits of the expert `right` alone."""
    bank, seen = bank_of_eight(), []
    with torch.no_grad(), attached(model, bank, weights=F.one_hot(torch.tensor(right), 8).float()):
        target = model(input_ids=ids).logits

    def note(observation: Observation) -> None:
        seen.append(observation.routing.dense().detach().mean(dim=(0, 1)))

    means = []
    optimizer = torch.optim.Adam(gate.parameters(), lr=lr)
    with attached(model, bank, gate=gate.train(), select=select, mixing=mixing) as routed, routed.observed(note):
        for _ in range(31):
            seen.clear()
            loss = F.mse_loss(model(input_ids=ids).logits, target)
            means.append(torch.stack(seen).mean(dim=0))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return means[0], means[-1]
