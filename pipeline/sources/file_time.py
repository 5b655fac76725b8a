"""Corrects time stamps of files, so that a wrong one shifts the time by at most one interval.

A stamp is compared with the previous and the next one. If it does not increase, or jumps ahead while the next one does
not, it is replaced by its predecessor plus one interval. If the next stamp confirms the change, a new time line starts;
it continues one interval after the old one. A gap of up to `LONGEST_GAP_S` is accepted as it is.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

LONGEST_GAP_S = 60.0
_GAP_INTERVALS = 5.0  # for recordings with one picture per minute


def mend(stated: Iterable[tuple[Item, float | None]], interval_s: float) -> Iterator[tuple[Item, float]]:
    """Yield each item with a strictly increasing time. One item is held back until the next one arrives.

    Args:
        stated: items with their time stamps, seconds; None for items without one.
        interval_s: nominal time between two pictures.
    """
    times = _FileTimes(interval_s)
    waiting: tuple[Item, float | None] | None = None
    for following in stated:
        if waiting is not None:
            yield waiting[0], times.place(waiting[1], following[1])
        waiting = following
    if waiting is not None:
        yield waiting[0], times.place(waiting[1], None)


class _FileTimes:
    def __init__(self, interval_s: float) -> None:
        self._intervals: deque[float] = deque([interval_s], maxlen=15)
        self._last_s: float | None = None
        self._shift_s = 0.0

    def place(self, stated_s: float | None, next_s: float | None) -> float:
        """Return the time of a picture with the stamp `stated_s` that is followed by one with the stamp `next_s`."""
        if self._last_s is None:
            self._last_s = self._first(stated_s, next_s)
            return self._last_s
        interval_s = statistics.median(self._intervals)
        expected_s = self._last_s + interval_s
        if next_s is not None and self._follows(next_s):
            expected_s = min(expected_s, (self._last_s + next_s + self._shift_s) / 2)
        if stated_s is None:
            seconds = expected_s
        elif not self._follows(stated_s):
            seconds = expected_s
            if next_s is None or not self._follows(next_s):
                self._shift_s = expected_s - stated_s
        elif self._stands_alone(stated_s, next_s, interval_s):
            seconds = expected_s
        else:
            seconds = stated_s + self._shift_s
            self._intervals.append(seconds - self._last_s)
        self._last_s = seconds
        return seconds

    def _first(self, stated_s: float | None, next_s: float | None) -> float:
        if stated_s is None:
            return 0.0
        if next_s is not None and (next_s <= stated_s or (stated_s < 0 and next_s - stated_s > LONGEST_GAP_S)):
            return max(0.0, next_s - self._intervals[0])
        return stated_s

    def _follows(self, stated_s: float) -> bool:
        assert self._last_s is not None
        longest_s = max(LONGEST_GAP_S, _GAP_INTERVALS * statistics.median(self._intervals))
        return 0 < stated_s + self._shift_s - self._last_s <= longest_s

    def _stands_alone(self, stated_s: float, next_s: float | None, interval_s: float) -> bool:
        """Whether the stamp jumps ahead and the next one is before it."""
        assert self._last_s is not None
        if next_s is None or stated_s + self._shift_s - self._last_s <= 2 * interval_s:
            return False
        return next_s <= stated_s and self._follows(next_s)
