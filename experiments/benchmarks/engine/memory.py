"""Bytes: the most that a step holds at once, as torch counts it and as the system does."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """The most that torch had allocated at once during a step beyond what it held before.

    On the processor from the allocator's own log, which the profiler keeps: every allocation and release of torch, whatever
    Python sees of it, and none of the noise of resident memory. Scratch space inside a matrix library is not in it.
    """
    step()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    log = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(log, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def resident_peak(step: Callable[[], object]) -> int | None:
    """The most memory that the process had during a step beyond what it had before; None where the system cannot say.

    This is what a machine must have. It is more than peak_bytes: glibc cuts small blocks (the nodes of a long autograd graph)
    out of freed large ones, which then fit no tensor any more, so that a graph of many small steps leaves holes.
    """
    step()
    before, reset = resident_bytes(), Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")  # sets the high-water mark back
    except OSError:
        return None
    step()
    mark = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(mark.split()[1]) * 1024 - before


def resident_bytes() -> int:
    """Resident memory of this process, once what was freed has gone back to the system (Linux with glibc)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
