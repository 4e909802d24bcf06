"""What happens to experts between passes: swapped, opened, imported, kept."""

from collections.abc import Iterator
from functools import partial
from itertools import cycle

from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter

from pmemx.core.bank import ExpertBank
from pmemx.core.peft_folder import read_peft_folder

from .row import OURS, PEER, SPEEDUP, Row, checked, grown, row_of
from .setting import Bench, Loaded
from .timing import Spread, interleaved

CALLS = 5  # in a turn, of what takes a few milliseconds


def swap(bench: Bench, experts: int, peft: PeftModel) -> Row:
    """Another adapter from its folder into the place of e0; its files are in the page cache."""
    bank = bench.bank(experts)
    folders = {engine: cycle([bench.adapter(1), bench.adapter(0)]) for engine in (OURS, PEER)}

    def ours() -> None:
        bank.swap("e0", read_peft_folder(next(folders[OURS])))

    def peer() -> None:
        hotswap_adapter(peft, str(next(folders[PEER])), "e0", torch_device=bench.setting.device)

    ours(), peer()
    difference = checked("swap from disk", experts, _difference(bank, peft), 0)
    times = interleaved({OURS: ours, PEER: peer}, bench.setting.rounds, wait=bench.wait, calls={OURS: CALLS})
    hotswap_adapter(peft, str(bench.adapter(0)), "e0", torch_device=bench.setting.device)
    return row_of("swap from disk", experts, times, difference)


def _difference(bank: ExpertBank, peft: PeftModel) -> float:
    """Between e0 in the bank and in PEFT; the bank holds B with its scale, a power of two here."""
    found = 0.0
    for site, factors in bank.factors("e0").items():
        layer = peft.get_base_model().get_submodule(site)
        A, B, scale = layer.lora_A["e0"].weight, layer.lora_B["e0"].weight, layer.scaling["e0"]
        found = max(found, float((factors.A - A).abs().max()), float((factors.B - scale * B).abs().max()))
    return found


def swap_growing(bench: Bench) -> Iterator[Row]:
    """The same in banks of several sizes, pmemx against itself; and out of memory."""
    folders = cycle([bench.adapter(1), bench.adapter(0)])
    blocks = cycle([bench.block(1), bench.block(0)])
    banks = {str(experts): bench.bank(experts) for experts in bench.setting.experts}
    kinds = {
        "swap from disk": lambda bank: bank.swap("e0", read_peft_folder(next(folders))),
        "swap from memory": lambda bank: bank.swap("e0", next(blocks)),
    }
    for operation, change in kinds.items():
        parts = {name: partial(change, bank) for name, bank in banks.items()}
        calls = dict.fromkeys(parts, CALLS)
        times = interleaved(parts, bench.setting.rounds, wait=bench.wait, calls=calls)
        for experts in bench.setting.experts:
            yield grown(f"{operation}, growing", experts, str(bench.setting.experts[0]), times)


def opening(bench: Bench, experts: int, loaded: Loaded) -> Iterator[Row]:
    """A bank out of its own file, and out of the folders of its adapters; PEFT loads one adapter after the other, once."""
    path = bench.folder / f"bank{experts}.safetensors"
    bank = bench.imported(experts)
    bank.save(path)
    opened = ExpertBank.open(path)
    difference = max(
        float((f.A - other[site].A).abs().max() + (f.B - other[site].B).abs().max())
        for name in bank.names
        for other in [opened.factors(name)]
        for site, f in bank.factors(name).items()
    )
    del bank, opened
    parts = {"open": lambda: ExpertBank.open(path), "import": lambda: bench.imported(experts)}
    times = interleaved(parts, bench.setting.rounds, wait=bench.wait, calls={"open": CALLS})
    theirs = sum(loaded.seconds)
    for operation in parts:
        wall = times.wall[operation]
        amounts = {OURS: Spread.of([1e3 * second for second in wall]), PEER: Spread.of([1e3 * theirs])}
        ratios = {SPEEDUP: Spread.of([theirs / second for second in wall])}
        yield Row(operation, experts, "ms", amounts, ratios, {}, checked(operation, experts, difference, 0))


def memory(bench: Bench, experts: int, loaded: Loaded) -> Row:
    """Bytes an expert: of the bank's store (exact), of PEFT's modules (resident memory), and of the factors themselves."""
    bank = bench.bank(experts)
    raw = sum(factor.nbytes for f in bank.factors("e0").values() for factor in (f.A, f.B))
    stores = {buffer.untyped_storage() for buffer in bank.buffers()}
    held = {OURS: sum(store.nbytes() for store in stores) / experts, PEER: loaded.resident / experts, "raw": raw}
    ratios = {f"{name} / raw": Spread.of([held[name] / raw]) for name in (OURS, PEER)}
    return Row("memory per expert", experts, "MiB", {n: Spread.of([v / 2**20]) for n, v in held.items()}, ratios, {})
