"""The factors of a bank as parameters: experts are trained inside the very layer that serves them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pmemx.core.bank import ExpertBank
from pmemx.core.block import CapabilityBlock, LoraFactors


class TrainableFactors(nn.Module):
    """A and B of all experts in float32, B without its scale, so that a learning rate means what it does in LoRA.

    Experts whose A is one tensor at a site have one parameter there. The bank, built of the same blocks without spare room,
    computes with what `bind` gave it last; once trained, it is the blocks that are stored and served.
    """

    def __init__(self, bank: ExpertBank, blocks: Sequence[CapabilityBlock]) -> None:
        super().__init__()
        self._bank, self._blocks = (bank,), tuple(blocks)
        self._names = bank.site_names
        self.sites = nn.ModuleList(_SiteParameters([b.factors.get(name) for b in blocks]) for name in self._names)
        device = next(site.A.device for _, site in bank.items())
        self.to(device)

    def bind(self) -> None:
        """Let the bank compute with the parameters as they stand; called before every pass whose gradient they want."""
        for (_, site), own in zip(self._bank[0].items(), self.sites, strict=True):
            A, B = own()
            site.bind(A.flatten(), B.flatten())

    def blocks(self) -> tuple[CapabilityBlock, ...]:
        """Copies of the blocks with the factors as they stand, on the CPU."""
        trained: list[dict[str, LoraFactors]] = [{} for _ in self._blocks]
        for name, own in zip(self._names, self.sites, strict=True):
            assert isinstance(own, _SiteParameters)
            for number, factors in own.split().items():
                trained[number][name] = factors
        return tuple(CapabilityBlock(b.card, factors) for b, factors in zip(self._blocks, trained, strict=True))


class _SiteParameters(nn.Module):
    """One site: every distinct A once, every expert's B, both by row, in the order of the bank's slots."""

    scale: Float[Tensor, "row 1"]
    """alpha / r of the row's expert."""
    rows: Int[Tensor, " row"]
    """Where a bank's row of A stands among the distinct ones."""

    def __init__(self, experts: Sequence[LoraFactors | None]) -> None:
        super().__init__()
        self._experts = {number: factors for number, factors in enumerate(experts) if factors is not None}
        distinct = list({id(factors.A): factors.A for factors in self._experts.values()}.values())
        starts, total = {}, 0
        for A in distinct:
            starts[id(A)], total = total, total + A.shape[0]
        rows = [starts[id(f.A)] + row for f in self._experts.values() for row in range(f.rank)]
        self._tied = len(distinct) < len(self._experts)
        self.A = nn.Parameter(torch.cat(distinct).float())
        self.B = nn.Parameter(torch.cat([factors.B.T for factors in self._experts.values()]).float())
        scales = [factors.scale for factors in self._experts.values() for _ in range(factors.rank)]
        self.register_buffer("scale", torch.tensor(scales)[:, None], persistent=False)
        self.register_buffer("rows", torch.tensor(rows), persistent=False)

    def forward(self) -> tuple[Float[Tensor, "row width_in"], Float[Tensor, "row width_out"]]:
        """A, and B with its scale, as a bank holds them."""
        return self.A.index_select(0, self.rows) if self._tied else self.A, self.B * self.scale

    def split(self) -> dict[int, LoraFactors]:
        """Copies by number of the expert; those of a shared A are one tensor."""
        A, B = self.A.detach().cpu(), self.B.detach().cpu()
        found, place, shared = {}, 0, {}
        for number, born in self._experts.items():
            rows = self.rows[place : place + born.rank].cpu()
            own = shared.setdefault(id(born.A), A[rows])
            found[number] = LoraFactors(own, B[place : place + born.rank].T.contiguous(), born.scale)
            place += born.rank
        return found
