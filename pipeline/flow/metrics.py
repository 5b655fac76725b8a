"""Counters and times of the stages, in constant memory.

Durations are counted in logarithmic histograms with bins of 2 %, so the error of a percentile is at most 1 %.
"""

import math
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

NEWER_FRAME = "newer frame"
TOO_OLD = "too old"
STOPPED = "stopped"
UNREADABLE = "unreadable"
NO_PICTURE = "no picture"
"""Why a frame was dropped. Sources add reasons of their own, such as "undecodable"."""

_SMALLEST_S = 1e-6
_LARGEST_S = 1e4
_BIN_RATIO = 1.02
_BINS = math.ceil(math.log(_LARGEST_S / _SMALLEST_S) / math.log(_BIN_RATIO)) + 1


class LatencyHistogram:
    """Durations from 1 microsecond to 10,000 seconds. Others are counted in the first or last bin."""

    def __init__(self) -> None:
        self._counts = [0] * _BINS
        self.count = 0
        self.sum_s = 0.0
        self.largest_s = 0.0

    def add(self, duration_s: float) -> None:
        """Count one duration, in seconds."""
        clipped_s = min(max(duration_s, _SMALLEST_S), _LARGEST_S)
        self._counts[round(math.log(clipped_s / _SMALLEST_S) / math.log(_BIN_RATIO))] += 1
        self.count += 1
        self.sum_s += duration_s
        self.largest_s = max(self.largest_s, duration_s)

    def percentile_s(self, percent: float) -> float | None:
        """Return the percentile of the durations, in seconds; None without durations."""
        rank, seen = max(1, math.ceil(self.count * percent / 100)), 0
        for index, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                return min(_SMALLEST_S * _BIN_RATIO**index, self.largest_s)
        return None

    def cumulative(self, bounds_s: Sequence[float]) -> list[int]:
        """Return for each bound, in seconds, how many durations do not exceed it. Bounds are rounded by up to 1 %."""
        totals = list(accumulate(self._counts))
        last = [math.floor(math.log(bound_s / _SMALLEST_S) / math.log(_BIN_RATIO) + 1e-9) for bound_s in bounds_s]
        return [0 if index < 0 else totals[min(index, _BINS - 1)] for index in last]

    def copy(self) -> Self:
        """Return a histogram with the same durations."""
        other = type(self)()
        other._counts = list(self._counts)
        other.count, other.sum_s, other.largest_s = self.count, self.sum_s, self.largest_s
        return other


@dataclass(frozen=True)
class StageReport:
    """The counts and times of a stage.

    Attributes:
        frames_in, frames_out, dropped: counts of frames, the last by reason.
        waited: how long a frame waited in the stage's queue.
        took: the stage's own time per frame.
    """

    name: str
    frames_in: int
    frames_out: int
    dropped: dict[str, int]
    waited: LatencyHistogram
    took: LatencyHistogram


@dataclass(frozen=True)
class MetricsView:
    """All counts and times at one moment.

    Attributes:
        frames_out: frames that a stage passed on, by (stage, source).
        drops: frames that were dropped, by (stage, source, reason).
        took, waited: the time per frame in a stage, and in its queue, by stage.
        ages: the age of each source's frames when they were published.
    """

    frames_out: dict[tuple[str, str], int]
    drops: dict[tuple[str, str, str], int]
    took: dict[str, LatencyHistogram]
    waited: dict[str, LatencyHistogram]
    ages: dict[str, LatencyHistogram]


class Metrics:
    """Counts and times of every stage. Any thread may add, any thread may read.

    The time of "decode" is that of reading and decoding a frame, without waiting for a camera. The time of "infer" runs
    from handing a frame to the engine until its detections are there. `CAPTURE_TO_PUBLISH` is a frame's age when it was
    published.
    """

    CAPTURE_TO_PUBLISH = "capture to publish"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in: Counter[tuple[str, str]] = Counter()
        self._out: Counter[tuple[str, str]] = Counter()
        self._drops: list[tuple[str, Callable[[], Mapping[tuple[str, str], int]]]] = []
        self._waited: dict[str, LatencyHistogram] = defaultdict(LatencyHistogram)
        self._took: dict[str, LatencyHistogram] = defaultdict(LatencyHistogram)
        self._age_s: dict[str, float] = {}
        self._ages: dict[str, LatencyHistogram] = defaultdict(LatencyHistogram)

    def watch(self, stage: str, drops: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        """Include the counts that `drops` returns, by (source, reason), in the drops of `stage`."""
        with self._lock:
            self._drops.append((stage, drops))

    def count_in(self, stage: str, source: str, waited_s: float) -> None:
        """Count a frame that `stage` took from its queue, with the time that it waited there."""
        with self._lock:
            self._in[stage, source] += 1
            self._waited[stage].add(waited_s)

    def count_out(self, stage: str, source: str, took_s: float | None = None) -> None:
        """Count a frame that `stage` passed on, and the time that the stage took for it if it is known."""
        with self._lock:
            self._out[stage, source] += 1
            if took_s is not None:
                self._took[stage].add(took_s)

    def count_age(self, source: str, age_s: float) -> None:
        """Count the age of a frame at the time of its publication."""
        with self._lock:
            self._age_s[source] = age_s
            self._ages[source].add(age_s)
            self._took[self.CAPTURE_TO_PUBLISH].add(age_s)

    def frames_out(self, stage: str, source: str | None = None) -> int:
        """Return how many frames `stage` passed on, of one source or of all."""
        with self._lock:
            return sum(n for (name, of), n in self._out.items() if name == stage and source in (None, of))

    def age_s(self, source: str) -> float | None:
        """Return the age of the last frame of `source` when it was published; None before the first."""
        return self._age_s.get(source)

    def drops(self, source: str | None = None, stage: str | None = None) -> Counter[str]:
        """Return the dropped frames by reason, for one source or all, and for one stage or all."""
        with self._lock:
            watched = [(name, dict(drops())) for name, drops in self._drops]
        found: Counter[str] = Counter()
        for name, drops in watched:
            for (of, reason), count in drops.items():
                if stage in (None, name) and source in (None, of):
                    found[reason] += count
        return found

    def view(self) -> MetricsView:
        """Return all counts and times at this moment."""
        with self._lock:
            counted: Counter[tuple[str, str, str]] = Counter()
            for stage, dropped in self._drops:
                counted.update({(stage, source, reason): n for (source, reason), n in dict(dropped()).items()})
            took, waited, ages = (
                {name: histogram.copy() for name, histogram in histograms.items()}
                for histograms in (self._took, self._waited, self._ages)
            )
            return MetricsView(dict(self._out), dict(counted), took, waited, ages)

    def report(self) -> list[StageReport]:
        """Return one report per stage, in the order of the stages; capture to publish comes last."""
        with self._lock:
            names = dict.fromkeys([name for name, _ in (*self._out, *self._in)] + [*self._took])
        return [
            StageReport(
                name,
                sum(n for (of, _), n in self._in.items() if of == name),
                self.frames_out(name),
                dict(self.drops(stage=name)),
                self._waited.get(name, LatencyHistogram()),
                self._took.get(name, LatencyHistogram()),
            )
            for name in sorted(names, key=lambda name: name == self.CAPTURE_TO_PUBLISH)
        ]
