"""A batch on the processes of one machine."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Protocol

from pipeline.fleet.jobs import Job
from pipeline.fleet.worker import Outcome, threads_per_worker

_ATTEMPTS = 2  # if its worker dies, a file is tried once more: the file may not be the cause


class Runs(Protocol):
    """Does jobs, like `Worker`."""

    def run(self, job: Job) -> Outcome:
        """Do one job."""
        ...


MakeWorker = Callable[[int], Runs]
"""Makes the object that does the jobs of a process, from its number of threads. It must be picklable."""


def run_local(jobs: Sequence[Job], make_worker: MakeWorker, workers: int, report: Callable[[Outcome], None]) -> None:
    """Do all jobs on `workers` processes. `report` is called with each outcome, by one thread at a time.

    If a worker dies (out of memory, a crash in a decoder), a new worker replaces it, and its file is tried once more.

    Raises:
        The error of `make_worker`, such as weights that are absent; the other workers then finish their files.
    """
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    count = max(1, min(workers, len(jobs)))
    recruits = [_Recruit(make_worker, threads_per_worker(count)) for _ in range(count)]
    lock, stop = threading.Lock(), threading.Event()
    failures: list[BaseException] = []

    def work(recruit: _Recruit) -> None:
        try:
            while not stop.is_set():
                outcome = recruit.run(waiting.get_nowait())
                with lock:
                    report(outcome)
        except queue.Empty:
            pass
        except BaseException as error:
            failures.append(error)
            stop.set()
        finally:
            recruit.close()

    threads = [threading.Thread(target=work, args=(recruit,), name="batch") for recruit in recruits]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stop.set()
    if failures:
        raise failures[0]


class _Recruit:
    """A pool of one process, so that it is known during which file the process died."""

    def __init__(self, make_worker: MakeWorker, threads: int) -> None:
        self._arguments = (make_worker, threads)
        self._pool = self._new_pool()

    def run(self, job: Job) -> Outcome:
        for _ in range(_ATTEMPTS):
            try:
                return self._pool.submit(_run, job).result()
            except BrokenProcessPool:
                self._pool.shutdown(wait=False)
                self._pool = self._new_pool()
        return Outcome(job, "failed", error=f"{job.input}: its worker died {_ATTEMPTS} times; is there enough memory?")

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), initializer=_start, initargs=self._arguments
        )


_arguments: tuple[MakeWorker, int] | None = None
_worker: Runs | None = None


def _start(make_worker: MakeWorker, threads: int) -> None:
    """Keep the arguments for the first job: errors of a job reach the caller, errors of an initializer do not."""
    global _arguments
    _arguments = (make_worker, threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _run(job: Job) -> Outcome:
    global _worker
    if _worker is None:
        assert _arguments is not None
        make_worker, threads = _arguments
        _worker = make_worker(threads)
    return _worker.run(job)


def _end_with_parent() -> None:
    """End this worker if the batch is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
