"""What a run shows on the terminal: a bar per file, rates per live source, and a table at the end."""

from __future__ import annotations

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
from pipeline.flow.pipeline import Line, LineResult

_RATE_WINDOW_S = 3.0


class LiveDisplay:
    """Progress on standard error while the line runs; call `update` several times a second."""

    def __init__(self, line: Line, console: Console) -> None:
        self._line = line
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._seen: dict[str, deque[tuple[float, int]]] = {}

    def __enter__(self) -> Self:
        for source in self._line.sources:
            self._tasks[source.name] = self._progress.add_task(source.name, total=None, facts="")
            self._seen[source.name] = deque([(time.monotonic(), 0)])
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self) -> None:
        """Show how far each source has come, how fast, and what was dropped."""
        for source in self._line.sources:
            done = self._line.metrics.frames_out("publish", source.name)
            facts = f"{self._rate(source.name, done):5.1f} frames/s"
            dropped = self._line.metrics.dropped(source.name)
            if dropped:
                facts += f", {dropped} dropped"
            total = None if source.live else source.frame_count  # known once the source is open
            self._progress.update(self._tasks[source.name], completed=done, total=total, facts=facts)

    def _rate(self, name: str, done: int) -> float:
        seen = self._seen[name]
        now_s = time.monotonic()
        seen.append((now_s, done))
        while len(seen) > 2 and now_s - seen[0][0] > _RATE_WINDOW_S:
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
        """Show how many bytes of a file have come."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name)
        self._progress.update(self._tasks[name], completed=received, total=total)


def print_closing(line: Line, result: LineResult, duration_s: float, console: Console) -> None:
    """Print the table of the stages, the overall rate, and where the files are."""
    console.print(closing_table(line.metrics))
    published = line.metrics.frames_out("publish")
    console.print(
        f"{published} frames published in {duration_s:.1f} s: {published / max(duration_s, 1e-9):.1f} frames/s"
    )
    for path in result.outputs:
        console.print(f"written: {path}", soft_wrap=True, highlight=False)


def closing_table(metrics: Metrics) -> Table:
    """Frames in, out and dropped by stage, and the percentiles of each stage and of capture to publish."""
    table = Table(title=None, show_edge=False, pad_edge=False)
    for column in ("stage", "in", "out", "dropped", "p50 ms", "p95 ms", "p99 ms"):
        table.add_column(column, justify="left" if column in ("stage", "dropped") else "right")
    for stage in metrics.report():
        dropped = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(stage.dropped.items()))
        whole_line = stage.name == Metrics.CAPTURE_TO_PUBLISH
        table.add_row(
            stage.name,
            "" if whole_line or stage.name == "decode" else str(stage.frames_in),
            "" if whole_line else str(stage.frames_out),
            dropped or ("" if whole_line else "0"),
            *(_milliseconds(value_s) for value_s in (stage.p50_s, stage.p95_s, stage.p99_s)),
        )
    return table


def _milliseconds(value_s: float | None) -> str:
    return "" if value_s is None else f"{value_s * 1000:.2f}"
