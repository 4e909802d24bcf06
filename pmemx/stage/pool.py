"""Independent jobs in worker processes, with one progress bar a job in the parent."""

import multiprocessing
import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from typing import Protocol, TypeVar, runtime_checkable

import torch

from pmemx.core.stage import Advance, Progress
from pmemx.stage.quiet import quiet

Tell = Callable[[int, str], None]
"""A running job reports steps done since its last report, and a short text."""


@runtime_checkable
class Job(Protocol):
    """What a pool runs: a picklable description with a label and a length."""

    @property
    def label(self) -> str: ...

    @property
    def total(self) -> int: ...


J = TypeVar("J", bound=Job)
R = TypeVar("R")


def run_jobs(function: Callable[[J, Tell], R], jobs: Sequence[J], *, workers: int, progress: Progress) -> list[R]:
    """Results in the order of jobs; workers 0 runs them one after the other in this process.

    Jobs start in the given order. The first failure stops those that have not begun, and is raised.
    """
    if workers == 0 or len(jobs) == 0:
        return [_inline(function, job, progress) for job in jobs]
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ExitStack() as stack:
        reports = manager.Queue()
        pool = stack.enter_context(ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_one_thread))
        bars: dict[int, Advance] = {}
        futures: list[Future[R]] = [
            pool.submit(_work, function, job, number, reports) for number, job in enumerate(jobs)
        ]
        pending: set[Future[R]] = set(futures)
        try:
            while pending:
                done, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
                _drain(reports, bars, jobs, stack, progress)
                for future in done:
                    future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        _drain(reports, bars, jobs, stack, progress)
        return [future.result() for future in futures]


def _inline(function: Callable[[J, Tell], R], job: J, progress: Progress) -> R:
    with progress(job.label, total=job.total) as advance:
        return function(job, advance)


def _one_thread() -> None:
    # One thread a worker: spinning threads of several processes on few cores cost more than they give.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def _work(function: Callable[[J, Tell], R], job: J, number: int, reports: "queue.Queue[tuple[int, int, str]]") -> R:
    quiet()
    reports.put((number, 0, ""))
    return function(job, lambda steps, note: reports.put((number, steps, note)))


def _drain(
    reports: "queue.Queue[tuple[int, int, str]]",
    bars: dict[int, Advance],
    jobs: Sequence[Job],
    stack: ExitStack,
    progress: Progress,
) -> None:
    while True:
        try:
            number, steps, note = reports.get_nowait()
        except queue.Empty:
            return
        if number not in bars:
            bars[number] = stack.enter_context(progress(jobs[number].label, total=jobs[number].total))
        bars[number](steps, note)
