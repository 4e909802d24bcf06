"""A bank holds the factors of many experts in one flat store with slots, so that one product serves them all."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pmemx.core.block import CapabilityBlock, LoraFactors
from pmemx.core.card import BlockCard
from pmemx.core.card_json import card_from, card_values
from pmemx.core.errors import CorruptBlock, IncompatibleBlock, UnknownBlock


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


class Layout:
    """Which rows belong to which slot; sites at which all slots have the same room share one.

    room: rows of each slot. owner, place: slot of each row, and its number within the slot. rows: row numbers by slot,
    filled up with row 0 to the widest slot's room; real tells a row of the slot (1) from such filling (0).
    """

    owner: Int[Tensor, " row"]
    place: Int[Tensor, " row"]
    rows: Int[Tensor, "slot room"]
    real: Float[Tensor, "slot room"]

    def __init__(self, number: int, room: Sequence[int]) -> None:
        self.number, self.room = number, tuple(room)
        self.widest = max(self.room)
        self.num_rows = sum(self.room)
        self._even = self.num_rows == self.widest * len(self.room)
        self.starts = tuple(accumulate(self.room, initial=0))[:-1]
        counts = torch.tensor(self.room)
        self.owner = torch.arange(len(self.room)).repeat_interleave(counts)
        starts = torch.tensor(self.starts)
        self.place = torch.arange(self.num_rows) - starts[self.owner]
        step = torch.arange(self.widest)
        inside = step < counts[:, None]
        self.rows = torch.where(inside, starts[:, None] + step, 0)
        self.real = inside.to(torch.float32)

    def weigh(
        self, low: Float[Tensor, "batch token row"], weight: Float[Tensor, "#batch decision slot"]
    ) -> Float[Tensor, "batch token row"]:
        """Every row times the weight of its slot."""
        if self._even:
            return (self._by_room(low) * weight[..., None]).flatten(-2)
        return low * weight.index_select(2, self.owner)

    def weigh_(self, low: Float[Tensor, "batch token row"], weight: Float[Tensor, "#batch decision slot"]) -> None:
        """The same in place."""
        if self._even:
            self._by_room(low).mul_(weight[..., None])
        else:
            low.mul_(weight.index_select(2, self.owner))

    def by_slot(self, values: Float[Tensor, "batch token row"]) -> Float[Tensor, "batch token slot"]:
        """Sum the values of each slot's rows."""
        if self._even:
            return self._by_room(values).sum(dim=-1)
        return values.new_zeros(*values.shape[:2], len(self.room)).index_add_(2, self.owner, values)

    def _by_room(self, values: Tensor) -> Tensor:
        # Slots and rows as a rectangle: weights are read as they are, not repeated row by row.
        return values.unflatten(-1, (len(self.room), self.widest))

    def move(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Apply what nn.Module applies to its buffers."""
        self.owner, self.place, self.rows, self.real = fn(self.owner), fn(self.place), fn(self.rows), fn(self.real)


class SiteFactors(nn.Module):
    """The rows of all experts at one site; those of a slot lie together, and what a slot does not use is zero."""

    A: Float[Tensor, "row width_in"]
    B: Float[Tensor, "row width_out"]

    def __init__(self, number: int, layout: Layout, width_in: int, width_out: int) -> None:
        """B is kept transposed and carries each expert's scale, which saves one pass over the tokens."""
        super().__init__()
        self.number, self.layout, self.width_in, self.width_out = number, layout, width_in, width_out
        self.ranks = [0] * len(layout.room)
        self._views: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def numel(self) -> tuple[int, int]:
        """Entries of A, and of B."""
        return self.layout.num_rows * self.width_in, self.layout.num_rows * self.width_out

    def bind(self, A: Float[Tensor, " entry_a"], B: Float[Tensor, " entry_b"]) -> None:
        """Make A and B views of their pieces of the flat store."""
        rows = self.layout.num_rows
        self.register_buffer("A", A.view(rows, self.width_in))
        self.register_buffer("B", B.view(rows, self.width_out))
        self._views.clear()

    def expert(self, slot: int) -> tuple[Float[Tensor, "room width_in"], Float[Tensor, "room width_out"]]:
        """A and B of a slot: views, made when they are first asked for."""
        if slot not in self._views:
            rows = slice(self.layout.starts[slot], self.layout.starts[slot] + self.layout.room[slot])
            self._views[slot] = self.A[rows], self.B[rows]
        return self._views[slot]

    def write(self, slot: int, factors: LoraFactors | None) -> None:
        """Fill a slot's rows, rounding each number once; what the factors do not need becomes zero."""
        A, B = self.expert(slot)
        rank = 0 if factors is None else factors.rank
        if factors is not None:
            # Half precision is widened first, unless the bank has the same: a product takes the type of its factors.
            given = factors.B.dtype
            wide = given if given == B.dtype else torch.promote_types(given, torch.float32)
            source = factors.B.to(device=B.device, dtype=wide)
            A[:rank].copy_(factors.A)
            torch.mul(source.T, factors.scale, out=B[:rank])
        if rank < A.shape[0]:
            A[rank:].zero_()
            B[rank:].zero_()
        self.ranks[slot] = rank


@dataclass(frozen=True)
class Resident:
    """Who sits in a slot. version: what the caller knows it by, such as a digest; revision: a new number at every write."""

    name: str
    card: BlockCard
    version: str
    revision: int


class ExpertBank(nn.Module):
    """Experts of one base model, frozen, each in a slot; the serving form of blocks, whose lossless form is the store's.

    Experts may differ in rank and in the sites they adapt. Loading and swapping copy one slot and do not depend on how
    many there are. The state dict has two entries a site, however many experts there are.
    """

    def __init__(
        self,
        blocks: Sequence[CapabilityBlock],
        *,
        spare: int = 0,
        room: int = 0,
        dtype: torch.dtype | None = None,
        versions: Sequence[str] | None = None,
    ) -> None:
        """Put blocks into slots in the given order and keep `spare` free ones, each with the largest rank at every site.

        room: rows that every slot has at least at every site, for versions of a higher rank or with more sites.
        versions: what the blocks are known by, such as digests.
        Raises IncompatibleBlock when names repeat, bases differ, a site has two shapes, or dtypes differ and dtype does
        not say which one to take.
        """
        super().__init__()
        if not blocks:
            raise IncompatibleBlock("a bank needs at least one block; distil one or import an adapter folder")
        bases = {block.card.base for block in blocks}
        if len(bases) > 1:
            owners = ", ".join(f"{block.card.name} on {block.card.base[:12]}" for block in blocks)
            raise IncompatibleBlock(f"blocks of different bases cannot share a bank ({owners}); give each base its own")
        self.base = bases.pop()
        dtypes = {f.A.dtype for block in blocks for f in block.factors.values()}
        dtypes |= {f.B.dtype for block in blocks for f in block.factors.values()}
        if dtype is None and len(dtypes) > 1:
            listed = ", ".join(sorted(str(found) for found in dtypes))
            raise IncompatibleBlock(
                f"the blocks mix {listed}; say which one the bank shall have: ExpertBank(..., dtype=)"
            )
        sites = {site: _widths(site, blocks) for block in blocks for site in block.factors}
        ranks = {site: [block.factors[site].rank if site in block.factors else 0 for block in blocks] for site in sites}
        rows = {
            site: tuple(max(rank, room) for rank in (*given, *[max(given)] * spare)) for site, given in ranks.items()
        }
        total = sum(sum(rows[site]) * sum(widths) for site, widths in sites.items())
        store = torch.zeros(total, dtype=dtype or dtypes.pop())
        pieces = [(site, key) for site in sites for key in ("A", "B")]
        self._build(store, {site: (*widths, rows[site]) for site, widths in sites.items()}, pieces)
        self._residents: list[Resident | None] = [None] * (len(blocks) + spare)
        self._writes = 0
        for slot, block in enumerate(blocks):
            self._sit(slot, block, block.card.name, "" if versions is None else versions[slot])

    def _build(
        self,
        store: Tensor,
        sites: Mapping[str, tuple[int, int, tuple[int, ...]]],
        pieces: Sequence[tuple[str, str]],
    ) -> None:
        """sites: widths and rooms, in the order that gates count them. pieces: site and factor, as they lie in the store."""
        rooms = dict.fromkeys(room for _, _, room in sites.values())
        layouts = {room: Layout(number, room) for number, room in enumerate(rooms)}
        self._layouts = tuple(layouts.values())
        self._sites = nn.ModuleList(
            SiteFactors(number, layouts[room], width_in, width_out)
            for number, (width_in, width_out, room) in enumerate(sites.values())
        )
        self.site_names = tuple(sites)
        self._pieces = tuple(pieces)
        self._bind(store)

    def _bind(self, store: Tensor) -> None:
        self._store = store
        sizes = {(name, key): size for name, site in self.items() for key, size in zip("AB", site.numel, strict=True)}
        parts = store.split([sizes[piece] for piece in self._pieces])
        found = dict(zip(self._pieces, parts, strict=True))
        for name, site in self.items():
            site.bind(found[name, "A"], found[name, "B"])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ExpertBank":
        # Moved as a whole, so that the sites stay views of one store.
        for layout in self._layouts:
            layout.move(fn)
        self._bind(fn(self._store))
        return self

    def __len__(self) -> int:
        return len(self._residents)

    @property
    def num_rows(self) -> int:
        """Rows of all experts at the widest site."""
        return max(layout.num_rows for layout in self._layouts)

    @property
    def writes(self) -> int:
        """How often a slot was written: while it stands still, so do the bytes of every expert."""
        return self._writes

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the factors."""
        return self._store.dtype

    @property
    def residents(self) -> tuple[Resident | None, ...]:
        """Who sits where; None is a free slot."""
        return tuple(self._residents)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the experts in the order of their slots."""
        return tuple(resident.name for resident in self._residents if resident is not None)

    @property
    def slot_names(self) -> tuple[str, ...]:
        """A name for every slot: its expert's, or "free slot 3"."""
        return tuple(
            f"free slot {slot}" if resident is None else resident.name for slot, resident in enumerate(self._residents)
        )

    def slot(self, name: str) -> int:
        """The slot of an expert. Raises UnknownBlock."""
        for slot, resident in enumerate(self._residents):
            if resident is not None and resident.name == name:
                return slot
        raise UnknownBlock(f"no expert {name!r} in this bank; there are {', '.join(self.names)}")

    def items(self) -> Iterator[tuple[str, SiteFactors]]:
        """Site names with their factors."""
        for name, site in zip(self.site_names, self._sites, strict=True):
            assert isinstance(site, SiteFactors)
            yield name, site

    def shape(self, width: int) -> BankShape:
        """What a gate over this bank must know; width is that of the model's hidden states."""
        return BankShape(self.names, {name: site.width_in for name, site in self.items()}, width)

    def factors(self, name: str) -> dict[str, LoraFactors]:
        """An expert's factors by site, with the scale in B: views, which change when its slot is written."""
        slot = self.slot(name)
        found = {}
        for site_name, site in self.items():
            if rank := site.ranks[slot]:
                A, B = site.expert(slot)
                found[site_name] = LoraFactors(A[:rank], B[:rank].T, 1.0)
        return found

    def load(self, block: CapabilityBlock, *, name: str = "", version: str = "") -> int:
        """Put a block into the first free slot with room for its ranks; returns the slot.

        name: under which to serve it, where it is not the card's. Raises IncompatibleBlock when the name is taken, the
        base or a width differs, or no free slot has the room.
        """
        name = name or block.card.name
        if name in self.names:
            raise IncompatibleBlock(f"{name!r} is in the bank already; swap it, or load this one under another name")
        free = [slot for slot, resident in enumerate(self._residents) if resident is None]
        fitting = [slot for slot in free if self._misfit(slot, block) is None]
        if not fitting:
            why = self._misfit(free[0], block) if free else f"all {len(self)} slots are taken"
            raise IncompatibleBlock(
                f"no free slot for {name!r}: {why}; unload an expert or build the bank with more `spare`"
            )
        self._sit(fitting[0], block, name, version)
        return fitting[0]

    def unload(self, name: str) -> int:
        """Free an expert's slot and overwrite its factors with zeros; returns the slot."""
        slot = self.slot(name)
        self._write(slot, None)
        return slot

    def swap(self, name: str, block: CapabilityBlock, *, version: str = "") -> int:
        """Put another block, mostly a new version, into the slot of an expert, under the same name; returns the slot.

        The expert stays as it is when this raises IncompatibleBlock: another base, another width, or too large a rank.
        """
        slot = self.slot(name)
        if (why := self._misfit(slot, block)) is not None:
            raise IncompatibleBlock(f"{block.card.name!r} does not fit the slot of {name!r}: {why}")
        self._sit(slot, block, name, version)
        return slot

    def _misfit(self, slot: int, block: CapabilityBlock) -> str | None:
        if block.card.base != self.base:
            return f"it was trained on base {block.card.base[:12]!r}, the bank is of {self.base[:12]!r}"
        sites = dict(self.items())
        for name, factors in block.factors.items():
            if name not in sites:
                return f"it adapts {name!r}, which no expert of this bank does"
            site = sites[name]
            if (widths := (factors.A.shape[1], factors.B.shape[0])) != (site.width_in, site.width_out):
                return f"{name!r} has widths {widths} in it and {(site.width_in, site.width_out)} in the bank"
            if factors.rank > site.layout.room[slot]:
                return f"{name!r} has rank {factors.rank}, the slot has room for {site.layout.room[slot]} (see `room`)"
        return None

    def _sit(self, slot: int, block: CapabilityBlock, name: str, version: str) -> None:
        taken = [other.name for i, other in enumerate(self._residents) if other is not None and i != slot]
        if name in taken:
            raise IncompatibleBlock(f"names in a bank must be unique, got {name!r} twice; rename one block")
        self._write(slot, block.factors)
        self._residents[slot] = Resident(name, block.card, version, self._writes)

    @torch.no_grad()
    def _write(self, slot: int, factors: Mapping[str, LoraFactors] | None) -> None:
        # Nobody sits in a slot while it is written: should a copy fail, no expert is left with half of its factors.
        self._writes += 1
        self._residents[slot] = None
        for name, site in self.items():
            site.write(slot, None if factors is None else factors.get(name))

    def save(self, path: Path) -> None:
        """One safetensors file, two tensors a site, which `open` maps into memory."""
        tensors = {f"{name}.{key}": getattr(site, key) for name, site in self.items() for key in ("A", "B")}
        # Experts that were trained alike have one PEFT config, the longest part of a card: it is written once.
        configs: dict[str, int] = {}
        residents = [
            resident
            and {
                "name": resident.name,
                "version": resident.version,
                "card": card_values(replace(resident.card, peft_config={})),
                "config": configs.setdefault(json.dumps(dict(resident.card.peft_config)), len(configs)),
            }
            for resident in self._residents
        ]
        sites = {
            name: {"layout": site.layout.number, "ranks": None if site.ranks == [*site.layout.room] else site.ranks}
            for name, site in self.items()
        }
        layouts = [layout.room for layout in self._layouts]
        head = {"format": _FORMAT, "base": self.base, "residents": residents, "layouts": layouts, "sites": sites}
        head["configs"] = [json.loads(config) for config in configs]
        # A copy of each tensor: safetensors refuses views of one storage.
        save_file({key: value.cpu().clone() for key, value in tensors.items()}, path, {"pmemx": json.dumps(head)})

    @classmethod
    def open(cls, path: Path) -> "ExpertBank":
        """The bank of a file, mapped and read when it is first used, whatever its size; writing never reaches the file.

        Raises CorruptBlock when the file is not a whole bank.
        """
        try:
            with safe_open(path, "pt") as file:
                head = json.loads((file.metadata() or {}).get("pmemx", "{}"))
                slices = {key: file.get_slice(key) for key in file.offset_keys()}
                shapes = {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}
        except (SafetensorError, ValueError) as error:
            raise CorruptBlock(f"{path} is not a whole safetensors file ({error}); write the bank again") from error
        dtypes = {dtype for _, dtype in shapes.values()}
        names = [f"{site}.{key}" for site in head.get("sites", {}) for key in ("A", "B")]
        if head.get("format") != _FORMAT or len(dtypes) != 1 or set(names) != shapes.keys():
            raise CorruptBlock(f"{path} holds no bank of this format; write it again with ExpertBank.save")
        with path.open("rb") as raw:
            start = 8 + int.from_bytes(raw.read(8), "little")
        mapped = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
        store = mapped[start:].view(_DTYPES[dtypes.pop()])
        bank = cls.__new__(cls)
        nn.Module.__init__(bank)
        # The head keeps the order of the sites, by which gates know them; the tensors lie in one that safetensors chose.
        widths = {site: (shapes[f"{site}.A"][0][1], shapes[f"{site}.B"][0][1]) for site in head["sites"]}
        rooms = [tuple(room) for room in head["layouts"]]
        sites = {site: (*widths[site], rooms[entry["layout"]]) for site, entry in head["sites"].items()}
        bank._build(store, sites, [(key[:-2], key[-1]) for key in shapes])
        for name, site in bank.items():
            ranks = head["sites"][name]["ranks"]
            site.ranks = [*site.layout.room] if ranks is None else ranks
        bank.base, bank._writes = head["base"], len(head["residents"])
        bank._residents = [
            entry
            and Resident(
                entry["name"], _card(entry["card"], head["configs"][entry["config"]]), entry["version"], slot + 1
            )
            for slot, entry in enumerate(head["residents"])
        ]
        return bank


_FORMAT = "bank-3"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def _card(values: Mapping[str, Any], config: Mapping[str, Any]) -> BlockCard:
    return card_from({**values, "peft_config": config})


def _widths(site: str, blocks: Sequence[CapabilityBlock]) -> tuple[int, int]:
    widths = {(f.A.shape[1], f.B.shape[0]) for block in blocks if (f := block.factors.get(site)) is not None}
    if len(widths) > 1:
        raise IncompatibleBlock(
            f"site {site!r} has widths {sorted(widths)} in one bank; its blocks are of different bases"
        )
    return widths.pop()


def place(bank: ExpertBank, model: nn.Module, dtype: torch.dtype | None = None) -> ExpertBank:
    """Move the bank to the device of a model, and to a floating type: the model's, or its other weights' if it is quantised."""
    floating = next((p for p in model.parameters() if p.dtype.is_floating_point), None)
    if floating is None:
        raise IncompatibleBlock(
            "the model has no floating-point weight to take the bank's type from; move the bank by hand"
        )
    return bank.to(device=floating.device, dtype=dtype or floating.dtype)
