"""A bank stacks the factors of many experts per site, so that one product serves them all."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pmemx.core.block import CapabilityBlock
from pmemx.core.errors import IncompatibleBlock


@dataclass(frozen=True)
class BankShape:
    """What a gate must know to be built: experts by name, input width by site, width of the hidden states."""

    experts: tuple[str, ...]
    sites: dict[str, int]
    width: int

    @property
    def num_choices(self) -> int:
        """The experts and, as choice 0, no expert."""
        return 1 + len(self.experts)


class SiteFactors(nn.Module):
    """The factors of all experts at one site; lower ranks and absent experts are padded with zeros."""

    A: Float[Tensor, "expert rank width_in"]
    B: Float[Tensor, "expert width_out rank"]

    def __init__(self, A: Float[Tensor, "expert rank width_in"], B: Float[Tensor, "expert width_out rank"]) -> None:
        """B already carries each expert's scale, which saves one pass over the tokens."""
        super().__init__()
        self.register_buffer("A", A)
        self.register_buffer("B", B)


class ExpertBank(nn.Module):
    """Experts of one base model, stacked per site; frozen."""

    def __init__(self, blocks: Sequence[CapabilityBlock]) -> None:
        """Stack blocks in the given order.

        Raises IncompatibleBlock when names repeat, bases differ, or a site has two shapes.
        """
        super().__init__()
        if not blocks:
            raise IncompatibleBlock("a bank needs at least one block; distil one or import an adapter folder")
        self.names = tuple(block.card.name for block in blocks)
        if len(set(self.names)) < len(self.names):
            raise IncompatibleBlock(f"names in a bank must be unique, got {', '.join(self.names)}; rename one block")
        bases = {block.card.base for block in blocks}
        if len(bases) > 1:
            owners = ", ".join(f"{block.card.name} on {block.card.base[:12]}" for block in blocks)
            raise IncompatibleBlock(f"blocks of different bases cannot share a bank ({owners}); give each base its own")
        self.base = bases.pop()
        self.blocks = tuple(blocks)
        self.site_names = tuple(dict.fromkeys(site for block in blocks for site in block.factors))
        self._sites = nn.ModuleList(_stack(site, blocks) for site in self.site_names)

    def __len__(self) -> int:
        return len(self.names)

    def items(self) -> Iterator[tuple[str, SiteFactors]]:
        """Site names with their stacked factors."""
        for name, site in zip(self.site_names, self._sites, strict=True):
            assert isinstance(site, SiteFactors)
            yield name, site

    def shape(self, width: int) -> BankShape:
        """What a gate over this bank must know; width is that of the model's hidden states."""
        return BankShape(self.names, {name: site.A.shape[2] for name, site in self.items()}, width)


def _stack(site: str, blocks: Sequence[CapabilityBlock]) -> SiteFactors:
    present = [block.factors[site] for block in blocks if site in block.factors]
    shapes = {(f.A.shape[1], f.B.shape[0]) for f in present}
    if len(shapes) > 1:
        raise IncompatibleBlock(
            f"site {site!r} has widths {sorted(shapes)} in one bank; its blocks are of different bases"
        )
    (width_in, width_out), rank = shapes.pop(), max(f.rank for f in present)
    A = present[0].A.new_zeros(len(blocks), rank, width_in)
    B = present[0].B.new_zeros(len(blocks), width_out, rank)
    for expert, block in enumerate(blocks):
        if (factors := block.factors.get(site)) is not None:
            A[expert, : factors.rank] = factors.A
            B[expert, :, : factors.rank] = factors.scale * factors.B
    return SiteFactors(A, B)


def place(bank: ExpertBank, model: nn.Module) -> ExpertBank:
    """Move the bank to the device and floating type of a model."""
    parameter = next(model.parameters())
    dtype = parameter.dtype if parameter.dtype.is_floating_point else torch.float32
    return bank.to(device=parameter.device, dtype=dtype)
