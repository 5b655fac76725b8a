"""The delay that a link has built up: arrival time minus stream time, relative to its smallest value.

The arrival time and the stream time come from two clocks, so their difference ("delay" here) has an unknown constant,
drifts by up to ±200 ppm, and increases by the time that the link holds packets back. A link can only add delay. So the
delay of an empty link is a line below all measured delays, and the distance from that line is the lag.

The line can fall immediately but rises only as fast as the clocks can drift, so a persistent delay is not forgotten.
The drift is estimated from the smallest delay of each half minute with the linear program of Moon, Skelly and Towsley,
"Estimation and removal of clock skew from network delay measurements" (INFOCOM 1999): of all lines below the points,
the one with the largest sum is the edge of their lower convex hull at their mean time.
"""

from __future__ import annotations

import itertools
from collections import deque

WORST_DRIFT = 200e-6
"""Largest difference of two clocks' rates: cheap quartz is within ±100 ppm each."""

_WINDOW_S = 30.0
_WINDOWS = 20
_FEWEST_WINDOWS = 4
_BELIEVABLE_SLOPE = 250e-6  # a steeper line means that the delay changed, not that a clock drifts
_SMALLEST_SLACK = 10e-6
_JITTER_S = 0.005  # on an idle link, the smallest delays of two windows differ by this much


class LinkLag:
    """Measures the lag of one connection."""

    def __init__(self) -> None:
        self._reference_s: float | None = None
        self._at_s = 0.0
        self._touched_s = 0.0
        self._drift = 0.0
        self._slack = WORST_DRIFT
        self._window_from_s = 0.0
        self._window_best: tuple[float, float] | None = None
        self._minima: deque[tuple[float, float]] = deque(maxlen=_WINDOWS)

    @property
    def reference_s(self) -> float | None:
        """Delay of the empty link at the last measurement; None before the first."""
        return self._reference_s

    @property
    def uncertainty_s(self) -> float:
        """Possible drift of the reference since the last delay that was equal to it."""
        return (abs(self._drift) + self._slack) * (self._at_s - self._touched_s)

    def expected_s(self, arrival_s: float) -> float | None:
        """Delay that an empty link would have at `arrival_s`; None before the first measurement."""
        if self._reference_s is None:
            return None
        return self._reference_s + (self._drift + self._slack) * max(0.0, arrival_s - self._at_s)

    def measure(self, delay_s: float, arrival_s: float) -> float:
        """Add the delay of one picture and return the lag, 0 or more seconds."""
        expected_s = self.expected_s(arrival_s)
        if expected_s is None:
            self._window_from_s = arrival_s
        if expected_s is None or delay_s <= expected_s:
            expected_s = delay_s
            self._touched_s = arrival_s
        self._reference_s, self._at_s = expected_s, max(arrival_s, self._at_s)
        self._learn(delay_s, arrival_s)
        return delay_s - expected_s

    def _learn(self, delay_s: float, arrival_s: float) -> None:
        if self._window_best is None or delay_s < self._window_best[1]:
            self._window_best = (arrival_s, delay_s)
        if arrival_s - self._window_from_s < _WINDOW_S:
            return
        self._minima.append(self._window_best)
        self._window_from_s, self._window_best = arrival_s, None
        if len(self._minima) < _FEWEST_WINDOWS:
            return
        slope = _slope_below(list(self._minima))
        if abs(slope) <= _BELIEVABLE_SLOPE:
            span_s = self._minima[-1][0] - self._minima[0][0]
            self._drift = min(max(slope, -WORST_DRIFT), WORST_DRIFT)
            self._slack = max(_SMALLEST_SLACK, min(WORST_DRIFT, _JITTER_S / span_s))


def _slope_below(points: list[tuple[float, float]]) -> float:
    """Return the slope of the lower convex hull of `points` (time, delay; times increase) at their mean time."""
    hull: list[tuple[float, float]] = []
    for x, y in points:
        while len(hull) > 1 and _turns_right(hull[-2], hull[-1], (x, y)):
            hull.pop()
        hull.append((x, y))
    mean_x = sum(x for x, _ in points) / len(points)
    for (x0, y0), (x1, y1) in itertools.pairwise(hull):
        if mean_x <= x1:
            return (y1 - y0) / (x1 - x0)
    return 0.0


def _turns_right(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether the middle point lies on or above the line from `a` to `c`."""
    return (b[0] - a[0]) * (c[1] - a[1]) <= (c[0] - a[0]) * (b[1] - a[1])
