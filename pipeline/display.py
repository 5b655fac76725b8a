"""The output of a run: its progress on a terminal or in the log, and a table at the end."""

from __future__ import annotations

import logging
import time
from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from pipeline.flow.metrics import Metrics
from pipeline.flow.pipeline import Pipeline, PipelineResult
from pipeline.sources import Source

_log = logging.getLogger(__name__)

_RATE_WINDOW_S = 3.0
_LOG_EVERY_S = 30.0


class RunDisplay:
    """Shows the progress of a pipeline; call `update` several times a second.

    A terminal shows one bar per source. Without a terminal, one line is logged every `_LOG_EVERY_S` seconds. If
    there are no sources, this is logged once.
    """

    def __init__(self, pipeline: Pipeline, console: Console) -> None:
        self._pipeline = pipeline
        self._rates = _Rates(_RATE_WINDOW_S if console.is_terminal else _LOG_EVERY_S)
        self._progress = _progress(console) if console.is_terminal else None
        self._tasks: dict[str, TaskID] = {}
        self._logged_s = time.monotonic()
        self._said_none = False

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self) -> None:
        """Show the progress of each source, its rate, the age of its last frame, and the dropped frames."""
        sources = list(self._pipeline.sources)
        if self._progress is None:
            self._said_none = self._said_none and not sources
            if time.monotonic() - self._logged_s >= _LOG_EVERY_S:
                self._logged_s = time.monotonic()
                facts = [f"{source.name}: {self._facts(source)}" for source in sources]
                if facts or not self._said_none:
                    _log.info("%s", "; ".join(facts) or "there are no sources; waiting for one to be added")
                self._said_none = not facts
            return
        for source in sources:
            if source.name not in self._tasks:
                self._tasks[source.name] = self._progress.add_task(source.name, total=None, facts="")
            self._progress.update(
                self._tasks[source.name],
                completed=self._pipeline.metrics.frames_out("publish", source.name),
                total=None if source.live else source.frame_count,  # known once the source is open
                facts=self._facts(source),
            )

    def _facts(self, source: Source) -> str:
        metrics = self._pipeline.metrics
        facts = f"{self._rates.rate(source.name, metrics.frames_out('publish', source.name)):.1f} frames/s"
        age_s = metrics.age_s(source.name)
        if source.live and age_s is not None:
            facts += f", age {age_s * 1000:.0f} ms"
        dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(metrics.drops(source.name).items()))
        return facts + (f", dropped: {dropped}" if dropped else "")


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


class _Rates:
    """Frames per second of each source over the last `window_s` seconds."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._seen: dict[str, deque[tuple[float, int]]] = {}
        self._start_s = time.monotonic()

    def rate(self, name: str, done: int) -> float:
        now_s = time.monotonic()
        seen = self._seen.setdefault(name, deque([(self._start_s, 0)]))
        seen.append((now_s, done))
        while len(seen) > 2 and now_s - seen[1][0] >= self._window_s:
            seen.popleft()
        (start_s, start), (end_s, end) = seen[0], seen[-1]
        return (end - start) / max(end_s - start_s, 1e-9)


class DownloadDisplay:
    """A bar per downloaded file."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("[bold]{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._progress = Progress(*columns, console=console)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, name: str, received: int, total: int | None) -> None:
        """Show how many bytes of a file have arrived."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name)
        self._progress.update(self._tasks[name], completed=received, total=total)


def print_closing(pipeline: Pipeline, result: PipelineResult, duration_s: float, console: Console) -> None:
    """Print the table of the stages, the overall rate, and where the files are."""
    console.print(closing_table(pipeline.metrics))
    rate = result.published / max(duration_s, 1e-9)
    console.print(f"{result.published} frames published in {duration_s:.1f} s: {rate:.1f} frames/s")
    for path in result.outputs:
        console.print(f"written: {path}", soft_wrap=True, highlight=False)


def closing_table(metrics: Metrics) -> Table:
    """Frames in, out and dropped by stage, the wait before each stage, and the percentiles of its time per frame."""
    table = Table(title=None, show_edge=False, pad_edge=False)
    for column in ("stage", "in", "out", "dropped", "wait p50 ms", "p50 ms", "p95 ms", "p99 ms"):
        table.add_column(column, justify="left" if column in ("stage", "dropped") else "right")
    for stage in metrics.report():
        whole = stage.name == Metrics.CAPTURE_TO_PUBLISH
        dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(stage.dropped.items()))
        table.add_row(
            stage.name,
            "" if whole or stage.name == "decode" else str(stage.frames_in),
            "" if whole else str(stage.frames_out),
            dropped or ("" if whole else "0"),
            _milliseconds(stage.waited.percentile_s(50)),
            *(_milliseconds(stage.took.percentile_s(percent)) for percent in (50, 95, 99)),
        )
    return table


def _milliseconds(value_s: float | None) -> str:
    return "" if value_s is None else f"{value_s * 1000:.2f}"
