"""The record of a run as JSON, its table and its figure."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from pmemx.report.style import BLUE, GREY, ORANGE, canvas, grid, standalone, svg

from .row import BASE, OURS, PEER, TARGETS, Row
from .setting import Setting
from .strategies import Cell
from .timing import digits

PACKAGES = ("torch", "peft", "transformers", "safetensors", "numpy")


def write(folder: Path, setting: Setting, rows: Sequence[Row], cells: Sequence[Cell], seconds: float) -> None:
    """record.json, table.md and cost.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "seconds": round(seconds),
        "machine": _machine(),
        "versions": {package: version(package) for package in PACKAGES},
        "setting": asdict(setting),
        "rows": [asdict(row) for row in rows],
        "targets": _verdicts(rows),
        "strategies": [asdict(cell) | {"regret": cell.regret} for cell in cells],
    }
    text = json.dumps(record, indent=1, allow_nan=False, default=str)
    (folder / "record.json").write_text(text + "\n", encoding="utf-8")
    (folder / "table.md").write_text(_table(rows) + "\n" + _strategies(cells), encoding="utf-8")
    (folder / "cost.svg").write_text(_figure(rows), encoding="utf-8")


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return done.stdout.strip()


def _machine() -> dict[str, object]:
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
        "vector": torch.backends.cpu.get_cpu_capability(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


def _verdicts(rows: Sequence[Row]) -> list[dict[str, object]]:
    found = []
    for target in TARGETS:
        for row in rows:
            if (value := target.value(row)) is not None:
                said = {"operation": row.operation, "experts": row.experts, "target": str(target)}
                found.append(said | {"median": value.median, "met": target.met(value)})
    return found


def _table(rows: Sequence[Row]) -> str:
    """Medians with extremes; times are of the wall."""
    lines = [
        "| operation | experts | pmemx | PEFT | pmemx / base | PEFT / base | PEFT / pmemx | in processor time | target | met |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|---|",
    ]
    for row in rows:
        targets = [(target, value) for target in TARGETS if (value := target.value(row)) is not None]
        grown = next(
            (str(spread) + f" x {name.split(' / ')[1]}" for name, spread in row.ratios.items() if "at " in name), ""
        )
        raw = row.ratios.get(f"{OURS} / raw")
        cells = [
            row.operation,
            str(row.experts),
            _amount(row, OURS),
            _amount(row, PEER),
            str(row.ratios.get(f"{OURS} / {BASE}", grown or (f"{raw} x raw" if raw else ""))),
            str(row.ratios.get(f"{PEER} / {BASE}", "")),
            str(row.ratios.get(f"{PEER} / {OURS}", "")),
            str(row.processor_ratios.get(f"{PEER} / {OURS}", row.processor_ratios.get(f"{OURS} / {BASE}", ""))),
            ", ".join(str(target) for target, _ in targets),
            ", ".join("yes" if target.met(value) else "**no**" for target, value in targets),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _amount(row: Row, engine: str) -> str:
    return f"{digits(row.amounts[engine].median)} {row.unit}" if engine in row.amounts else ""


def _strategies(cells: Sequence[Cell]) -> str:
    """Costs of the experts of a layer in costs of its linear layers; the cheapest in bold, the planned one with a dot."""
    lines = ["| type | k | tokens | experts | used | dense | segments | padded |", "|---|--:|--:|--:|--:|--:|--:|--:|"]
    for cell in cells:
        best = min(cell.cost, key=lambda name: cell.cost[name].median)
        shown = [
            f"**{digits(spread.median)}**" if name == best else digits(spread.median)
            for name, spread in cell.cost.items()
        ]
        shown = [f"{text} •" if name == cell.planned else text for name, text in zip(cell.cost, shown, strict=True)]
        head = [cell.dtype, str(cell.chosen), str(cell.tokens), str(cell.experts), str(cell.used)]
        lines.append("| " + " | ".join(head + shown) + " |")
    return "\n".join(lines) + "\n"


def _figure(rows: Sequence[Row]) -> str:
    """Cost against the number of experts, PEFT beside pmemx; both axes in powers of ten."""
    panels = {
        "soft gate (X-LoRA)": ("soft gate", "forward, times base"),
        "token top-2 (Arrow)": ("token top-2", "forward, times base"),
        "swap from disk": ("swap from disk", "milliseconds"),
    }
    with canvas(8.2, 2.9) as figure:
        for axes, (title, (operation, unit)) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
            _panel(axes, [row for row in rows if row.operation == operation], relative=unit != "milliseconds")
            axes.set_title(title)
            axes.set_xlabel("experts")
            axes.set_ylabel(unit)
        figure.tight_layout()
        return standalone(svg(figure, "cost"))


def _panel(axes: Axes, rows: Sequence[Row], *, relative: bool) -> None:
    grid(axes, "y")
    axes.set(xscale="log", yscale="log")
    for engine, label, colour in ((PEER, "PEFT", ORANGE), (OURS, "pmemx", BLUE)):
        points = [(row.experts, row.ratios[f"{engine} / {BASE}"] if relative else row.amounts[engine]) for row in rows]
        experts = [number for number, _ in points]
        axes.plot(experts, [spread.median for _, spread in points], marker="o", color=colour, label=label)
        axes.vlines(experts, [s.low for _, s in points], [s.high for _, s in points], color=colour, linewidth=1)
        if points:
            axes.annotate(label, (experts[-1], points[-1][1].median), (4, 4), textcoords="offset points", color=colour)
    if relative:
        axes.axhline(1, color=GREY, linewidth=0.8)
    axes.set_xticks([row.experts for row in rows], [str(row.experts) for row in rows], minor=False)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    # The style writes text as it is, and matplotlib's own labels of powers are formulas.
    axes.yaxis.set_major_formatter(lambda value, _: digits(value))
    axes.minorticks_off()
    axes.margins(x=0.3, y=0.12)
