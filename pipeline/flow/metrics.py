"""Counters and latencies of the line, in constant memory however long it runs.

Latencies go into logarithmic histograms whose bins are 2 % wide, so a percentile is right to 1 %.
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_SMALLEST_S = 1e-6
_LARGEST_S = 1e4
_BIN_RATIO = 1.02
_BINS = math.ceil(math.log(_LARGEST_S / _SMALLEST_S) / math.log(_BIN_RATIO)) + 1


class LatencyHistogram:
    """Durations from 1 microsecond to 10,000 seconds; what lies outside counts in the outermost bin."""

    def __init__(self) -> None:
        self._counts = [0] * _BINS
        self.count = 0
        self.largest_s = 0.0

    def add(self, duration_s: float) -> None:
        """Count one duration, in seconds."""
        clipped_s = min(max(duration_s, _SMALLEST_S), _LARGEST_S)
        self._counts[round(math.log(clipped_s / _SMALLEST_S) / math.log(_BIN_RATIO))] += 1
        self.count += 1
        self.largest_s = max(self.largest_s, duration_s)

    def percentile_s(self, percent: float) -> float | None:
        """Return the duration that `percent` of the durations do not exceed, in seconds; None without durations."""
        if self.count == 0:
            return None
        rank = max(1, math.ceil(self.count * percent / 100))
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                return min(_SMALLEST_S * _BIN_RATIO**index, self.largest_s)
        return self.largest_s


@dataclass(frozen=True)
class StageReport:
    """What a stage did so far: frames in, out and dropped by reason, and its percentiles in seconds."""

    name: str
    frames_in: int
    frames_out: int
    dropped: dict[str, int]
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None


class Metrics:
    """Facts of every stage; any thread may add, any thread may read.

    A stage counts what it takes in, what it hands on, and what it drops with a reason, per source.
    """

    CAPTURE_TO_PUBLISH = "capture to publish"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in: Counter[tuple[str, str]] = Counter()
        self._out: Counter[tuple[str, str]] = Counter()
        self._dropped: Counter[tuple[str, str, str]] = Counter()
        self._latency: dict[str, LatencyHistogram] = {}

    def count_in(self, stage: str, source: str) -> None:
        """Count a frame of `source` that `stage` took in."""
        with self._lock:
            self._in[stage, source] += 1

    def count_out(self, stage: str, source: str) -> None:
        """Count a frame of `source` that `stage` handed on."""
        with self._lock:
            self._out[stage, source] += 1

    def count_drop(self, stage: str, source: str, reason: str, frames: int = 1) -> None:
        """Count frames of `source` that never left `stage`, and why."""
        with self._lock:
            self._dropped[stage, source, reason] += frames

    def add_latency(self, stage: str, duration_s: float) -> None:
        """Count one duration of `stage`, in seconds."""
        with self._lock:
            self._latency.setdefault(stage, LatencyHistogram()).add(duration_s)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the duration of the block as one of `stage`; a block that raises is not counted."""
        start_s = time.perf_counter()
        yield
        self.add_latency(stage, time.perf_counter() - start_s)

    def frames_out(self, stage: str, source: str | None = None) -> int:
        """Frames that `stage` handed on, of one source or of all."""
        with self._lock:
            return sum(n for (name, of), n in self._out.items() if name == stage and source in (None, of))

    def dropped(self, source: str | None = None) -> int:
        """Frames that were dropped anywhere, of one source or of all."""
        with self._lock:
            return sum(n for (_, of, _), n in self._dropped.items() if source in (None, of))

    def drops_of(self, source: str) -> dict[str, int]:
        """Frames of `source` that were dropped so far, by reason, over all stages."""
        drops: Counter[str] = Counter()
        with self._lock:
            for (_, of, reason), count in self._dropped.items():
                if of == source:
                    drops[reason] += count
        return dict(drops)

    def report(self) -> list[StageReport]:
        """One report per stage, in the order in which the stages first saw a frame; capture-to-publish last."""
        with self._lock:
            counted = [name for name, *_ in (*self._out, *self._in, *self._dropped)]
            names = dict.fromkeys([*counted, *self._latency])
            return [self._report_of(name) for name in sorted(names, key=lambda name: name == self.CAPTURE_TO_PUBLISH)]

    def _report_of(self, stage: str) -> StageReport:
        dropped: Counter[str] = Counter()
        for (name, _, reason), count in self._dropped.items():
            if name == stage:
                dropped[reason] += count
        latency = self._latency.get(stage, LatencyHistogram())
        return StageReport(
            stage,
            sum(n for (name, _), n in self._in.items() if name == stage),
            sum(n for (name, _), n in self._out.items() if name == stage),
            dict(dropped),
            latency.percentile_s(50),
            latency.percentile_s(95),
            latency.percentile_s(99),
        )
