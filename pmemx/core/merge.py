"""The interface of merges: weighted blocks of one base to one block that remembers its parents."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from pmemx.core.block import CapabilityBlock, LoraFactors
from pmemx.core.canonical import plain
from pmemx.core.card import BlockCard, Origin, Sensitivity
from pmemx.core.errors import ConfigError, IncompatibleBlock
from pmemx.core.low_rank import Cut, Rank

Moments = Mapping[str, Float[Tensor, "_width_in _width_in"]]
"""Uncentred second moments E[x x^T] of what each site reads, by site; sites that an expert leaves alone read, too."""


@dataclass(frozen=True, eq=False)
class Parent:
    """A block that enters a merge, its weight, and the digest of its version in the store.

    moments: of the block's own data, at the sites of all blocks of the merge; None where no merge asks for them.
    """

    block: CapabilityBlock
    weight: float
    digest: str
    moments: Moments | None = None


@dataclass(frozen=True, eq=False)
class Merged:
    """The block that came out. lost_energy: the share of the squared Frobenius norm, over all sites, that no rank was
    left for; 0 where nothing was cut. It stands in the card's metrics, too."""

    block: CapabilityBlock
    lost_energy: float


@dataclass(frozen=True, eq=False)
class Experts:
    """What a method merges: factors by site and weights, in the order of the parents' names.

    They lie on the CPU in one type, at least float32: weights and scales that are folded into half-precision factors
    would be rounded. moments: of every expert at every site, in the same order; empty where the method does not
    read them.
    """

    factors: tuple[Mapping[str, LoraFactors], ...]
    weights: tuple[float, ...]
    moments: tuple[Moments, ...] = ()

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites of all experts, sorted."""
        return tuple(sorted({site for factors in self.factors for site in factors}))

    def at(self, site: str) -> Iterator[tuple[int, LoraFactors, float]]:
        """Number, factors and weight of every expert that adapts the site; the others' update is zero there."""
        for number, (factors, weight) in enumerate(zip(self.factors, self.weights, strict=True)):
            if site in factors:
                yield number, factors[site], weight

    def limit(self, rank: Rank, site: str) -> int | float:
        """The rank, or the share of energy, that a merge may keep at a site."""
        if rank == "sum":
            return sum(factors.rank for _, factors, _ in self.at(site))
        if rank == "largest":
            return max(update.rank for factors in self.factors for update in factors.values())
        return rank


class Merge(ABC):
    """Blocks to one block, on the CPU. A frozen dataclass of settings, which becomes part of the block's recipe.

    reads_moments: whether the method needs data, as second moments of what the sites read.
    """

    reads_moments: ClassVar[bool] = False

    @final
    def __call__(self, parents: Sequence[Parent], *, name: str, generator: torch.Generator) -> Merged:
        """Merge; experts may differ in rank, scale and sites, and their order does not matter, not even to a draw.

        generator: on the CPU, for methods that draw. Raises IncompatibleBlock when there is no parent, one comes twice,
        or they are of different bases; ConfigError for a weight that is no finite number, and for a parent without
        moments where the method reads them.
        """
        _check(parents)
        parents = sorted(parents, key=lambda parent: (parent.block.card.name, parent.digest))
        experts = _experts(parents)
        if self.reads_moments:
            experts = replace(experts, moments=tuple(_moments(self, parent, experts) for parent in parents))
        cuts = self.merged_sites(experts, generator)
        lost, total = sum(cut.lost for cut in cuts.values()), sum(cut.total for cut in cuts.values())
        lost_energy = lost / total if total else 0.0
        factors = {site: cut.factors for site, cut in cuts.items()}
        return Merged(CapabilityBlock(_card(self, parents, name, lost_energy), factors), lost_energy)

    @abstractmethod
    def merged_sites(self, experts: Experts, generator: torch.Generator) -> dict[str, Cut]:
        """The merged update of every site."""


def _check(parents: Sequence[Parent]) -> None:
    if not parents:
        raise IncompatibleBlock("a merge needs at least one block; distil one or import an adapter folder")
    digests = [parent.digest for parent in parents]
    if twice := sorted({parent.block.card.name for parent in parents if digests.count(parent.digest) > 1}):
        raise IncompatibleBlock(f"{', '.join(twice)} enters the merge twice; give it once, with the sum of its weights")
    if len({parent.block.card.base for parent in parents}) > 1:
        owners = ", ".join(f"{p.block.card.name} on {p.block.card.base[:12]}" for p in parents)
        raise IncompatibleBlock(f"blocks of different bases cannot be merged ({owners}); merge those of one base")
    for parent in parents:
        if not math.isfinite(parent.weight):
            raise ConfigError(f"the weight of {parent.block.card.name} is {parent.weight}; give a finite number")
    shapes: dict[str, tuple[int, int]] = {}
    for parent in parents:
        for site, factors in parent.block.factors.items():
            shape = (factors.A.shape[1], factors.B.shape[0])
            if shapes.setdefault(site, shape) != shape:
                raise IncompatibleBlock(
                    f"{site} maps {shape[0]} to {shape[1]} in {parent.block.card.name}, but {shapes[site][0]} to "
                    f"{shapes[site][1]} in another block; their bases differ, so merge those of one base"
                )


def _experts(parents: Sequence[Parent]) -> Experts:
    tensors = [t for parent in parents for f in parent.block.factors.values() for t in (f.A, f.B)]
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    return Experts(
        tuple(
            {
                site: LoraFactors(f.A.detach().to("cpu", dtype), f.B.detach().to("cpu", dtype), f.scale)
                for site, f in parent.block.factors.items()
            }
            for parent in parents
        ),
        tuple(float(parent.weight) for parent in parents),
    )


def _moments(merge: Merge, parent: Parent, experts: Experts) -> dict[str, Tensor]:
    name, given = parent.block.card.name, parent.moments or {}
    if missing := [site for site in experts.sites if site not in given]:
        raise ConfigError(
            f"{type(merge).__name__} reads second moments of what every site reads, but {name} comes without those of "
            f"{missing[0]}; collect them on its own data with runtime.moments, as the merge stage of a run does"
        )
    found = {}
    for site in experts.sites:
        width = next(factors[site].A.shape[1] for factors in experts.factors if site in factors)
        if given[site].shape != (width, width):
            raise IncompatibleBlock(
                f"moments of {name} at {site} have shape {tuple(given[site].shape)}, but the site reads {width} numbers; "
                f"collect them on the base of these blocks"
            )
        if not given[site].isfinite().all():
            raise ConfigError(f"moments of {name} at {site} hold NaN or infinity; collect them in float32")
        found[site] = given[site].detach().cpu()
    return found


def _card(merge: Merge, parents: Sequence[Parent], name: str, lost_energy: float) -> BlockCard:
    cards = [parent.block.card for parent in parents]
    licences = sorted({card.licence for card in cards})
    return BlockCard(
        name=name,
        domain=", ".join(dict.fromkeys(card.domain for card in cards)),
        base=cards[0].base,
        base_name=cards[0].base_name,
        base_revision=cards[0].base_revision,
        origin=Origin.MERGED.value,
        sources=tuple(dict.fromkeys(source for card in cards for source in card.sources)),
        # What was made of a secret is one.
        sensitivity=max((Sensitivity(card.sensitivity) for card in cards), key=list(Sensitivity).index).value,
        # One parent without a licence leaves the whole without one.
        licence=" AND ".join(licences) if all(licences) else "",
        made_by="pmemx merge",
        parents=tuple(parent.digest for parent in parents),
        recipe={
            "merge": plain(merge),
            "parents": [card.name for card in cards],
            "weights": [float(parent.weight) for parent in parents],
        },
        metrics={"lost_energy": lost_energy},
    )
