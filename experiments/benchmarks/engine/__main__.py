"""Measure the engine beside PEFT: python -m experiments.benchmarks.engine [--quick] [--out FOLDER]."""

import argparse
import gc
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch

from . import lifecycle, passes
from .row import Row
from .setting import QUICK, Bench, Setting
from .strategies import cells
from .write import write


def measure(setting: Setting) -> Iterator[Row]:
    """Every row; PEFT's models are built once for each number of experts."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(setting, Path(folder))
        for experts in setting.peer:
            peft, loaded = bench.peft(experts)
            yield from passes.mixed(bench, experts, peft)
            yield lifecycle.swap(bench, experts, peft)
            yield from lifecycle.opening(bench, experts, loaded)
            yield lifecycle.memory(bench, experts, loaded)
            yield passes.sparse(bench, experts, peft)
            del peft
            yield from passes.soft(bench, experts, bench.xlora(experts))
        yield from lifecycle.swap_growing(bench)
        yield from passes.growing(bench)


def main() -> None:
    """Measure, print every row as it comes, and write record, table and figure."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.engine", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny shapes: everything runs, no number means anything")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="folder of record.json, table.md, cost.svg"
    )
    parser.add_argument("--experts", type=int, nargs="+", help="numbers of experts, with and without PEFT")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--hidden", type=int, help="width of the model")
    chosen = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    gc.freeze()  # what the imports made is no garbage; looking at it after every round would take longer than the rounds
    warnings.filterwarnings("ignore", module="peft|transformers")
    setting = replace(QUICK if chosen.quick else Setting(), device=chosen.device, dtype=chosen.dtype)
    if chosen.hidden:
        setting = replace(setting, hidden=chosen.hidden, intermediate=chosen.hidden * 11 // 4)
    if chosen.experts:
        setting = replace(
            setting, experts=tuple(chosen.experts), peer=tuple(chosen.experts), trained=tuple(chosen.experts)
        )
    start, rows = perf_counter(), []
    for row in measure(setting):
        rows.append(row)
        print(f"{perf_counter() - start:6.0f} s  {row.operation}, {row.experts} experts:", end=" ")
        print("; ".join(f"{name} {spread}" for name, spread in row.ratios.items()), flush=True)
    found = (
        [cell for dtype in ("float32", "bfloat16") for cell in cells(setting, dtype)] if setting.device == "cpu" else []
    )
    write(chosen.out, setting, rows, found, perf_counter() - start)


if __name__ == "__main__":
    main()
