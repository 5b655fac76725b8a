"""A batch from the command line: runs the jobs, shows the progress, and prints the result of each job."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.errors import ConfigError
from pipeline.fleet.jobs import Job
from pipeline.fleet.local import MakeWorker, run_local
from pipeline.fleet.worker import BatchSettings, Outcome, Worker
from pipeline.outputs.convert import FORMATS

_SHOWN = 20  # largest number of failures in the summary; the manifests have all of them


@dataclass(frozen=True)
class Workers:
    """Where a batch runs.

    Attributes:
        count: files at the same time; 0 for one per two cores of this machine, or what a Ray cluster has room for.
        ray: address of a Ray cluster, "local" for one on this machine; "" for plain processes.
        cpus: cores that each file takes on Ray.
        gpus: GPUs that each file takes on Ray; with 0.5, two files share a GPU.
    """

    count: int = 0
    ray: str = ""
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 0 or not self.cpus > 0 or not self.gpus >= 0:
            raise ConfigError(
                f"--workers {self.count}, --cpus {self.cpus:g}, --gpus {self.gpus:g}: give 0 workers (automatic) or "
                "more, above 0 cpus, and 0 gpus or more"
            )


def run_batch(jobs: Sequence[Job], settings: BatchSettings, workers: Workers, console: Console) -> int:
    """Do all jobs; return the exit status: 0, or 1 if a file failed.

    Raises:
        ConfigError: an export format does not exist, or the cluster does not answer.
    """
    for kind in settings.exports:
        if kind not in FORMATS:
            raise ConfigError(f"--export {kind}: give one of {', '.join(FORMATS)}")
    outcomes: list[Outcome] = []
    with _progress(console) as progress:
        task = progress.add_task("files", total=len(jobs), note="")

        def report(outcome: Outcome) -> None:
            outcomes.append(outcome)
            failed = sum(each.state == "failed" for each in outcomes)
            progress.update(task, advance=1, note=f"{failed} failed" if failed else "")
            if not console.is_terminal:
                detail = outcome.error or f"{outcome.frames} frames"
                console.print(f"{outcome.state}: {outcome.job.input} ({detail})", soft_wrap=True, highlight=False)

        _run(jobs, partial(Worker, settings), workers, report)
    _summarise(outcomes, console)
    return 1 if any(outcome.state == "failed" for outcome in outcomes) else 0


def _run(jobs: Sequence[Job], make_worker: MakeWorker, workers: Workers, report: Callable[[Outcome], None]) -> None:
    if not workers.ray:
        run_local(jobs, make_worker, workers.count or max(1, (os.cpu_count() or 1) // 2), report)
        return
    from pipeline.fleet.on_ray import run_on_ray

    run_on_ray(jobs, make_worker, workers.ray, report, workers=workers.count, cpus=workers.cpus, gpus=workers.gpus)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )


def _summarise(outcomes: Sequence[Outcome], console: Console) -> None:
    counts = Counter(outcome.state for outcome in outcomes)
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if failed:
        table = Table("file", "what went wrong", title="failed")
        for outcome in failed[:_SHOWN]:
            table.add_row(str(outcome.job.input), outcome.error)
        console.print(table)
        if len(failed) > _SHOWN:
            console.print(f"… and {len(failed) - _SHOWN} more: see the manifest.json of each")
    frames = sum(outcome.frames for outcome in outcomes)
    console.print(
        f"{counts['done']} done ({frames} frames), {counts['skipped']} already complete, {counts['failed']} failed"
    )
