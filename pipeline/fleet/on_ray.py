"""A batch on the machines of a Ray cluster.

Each file is a Ray task. Ray runs as many tasks at the same time as there is room for. If the process or the machine of
a task dies, Ray tries it again elsewhere. A process keeps its engine for its next file. All machines must see the
inputs and outputs under the same paths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pipeline.fleet.jobs import Job
from pipeline.fleet.local import MakeWorker, Runs
from pipeline.fleet.ray_cluster import connected
from pipeline.fleet.worker import Outcome

_RETRIES = 2


def run_on_ray(
    jobs: Sequence[Job],
    make_worker: MakeWorker,
    address: str,
    report: Callable[[Outcome], None],
    *,
    workers: int,
    cpus: float = 1.0,
    gpus: float = 0.0,
) -> None:
    """Do all jobs on a Ray cluster. `report` is called with each outcome.

    Args:
        address: the cluster's address, or "local" to start one on this machine for this batch.
        workers: files at the same time; 0 for as many as the cluster has room for.
        cpus, gpus: cores and GPUs that each file takes.
    Raises:
        ConfigError: Ray is not installed, or the cluster cannot be reached.
        The error of `make_worker`, such as weights that are absent.
    """
    with connected(address) as ray:
        task = ray.remote(_run).options(num_cpus=cpus, num_gpus=gpus, max_retries=_RETRIES)
        shared = ray.put(make_worker)
        waiting = list(reversed(jobs))
        under_way: dict[Any, Job] = {}
        while waiting or under_way:
            while waiting and (workers == 0 or len(under_way) < workers):
                job = waiting.pop()
                under_way[task.remote(shared, max(1, int(cpus)), job)] = job
            (done,), _ = ray.wait(list(under_way), num_returns=1)
            report(_outcome(ray, done, under_way.pop(done)))


_worker: Runs | None = None


def _run(make_worker: MakeWorker, threads: int, job: Job) -> Outcome:
    """Do one job, in a process of the cluster."""
    global _worker
    if _worker is None:
        _worker = make_worker(threads)
    return _worker.run(job)


def _outcome(ray: Any, done: Any, job: Job) -> Outcome:
    try:
        outcome: Outcome = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.as_instanceof_cause() from error
    except ray.exceptions.RayError as error:
        reason = str(error).splitlines()[0]
        return Outcome(job, "failed", error=f"{job.input}: its worker died {_RETRIES + 1} times ({reason})")
    return outcome
