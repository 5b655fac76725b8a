"""A continuous clock from the time stamps of a stream. Wrong stamps are ignored; lasting changes are followed.

A time stamp is doubtful if it does not increase, or if it is further ahead than the arrival allows. A single doubtful
picture is placed one interval after its predecessor. Doubtful pictures that agree with each other for half a second are
a new time line (after a reset, a wrap or a jump), which continues the old one without a step. If no stamps agree for a
second (frozen, zero or random stamps), the time follows the arrivals until the stamps agree again.

Some stamps are made up: a demuxer or a camera counts pictures and assumes a wrong rate. Then stream time and real time
diverge steadily from the first second. A link that is too slow looks similar, but there, larger pictures take longer.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass

from pipeline.sources.link_lag import LinkLag

_STAYS_S = 0.5
"""A change of the time stamps that lasts this long is followed."""

_HOPELESS_S = 1.0
"""Without time stamps that agree for this long, time follows the arrivals."""

_GAP_INTERVALS = 2.5  # a step of more intervals than this is a gap, not jitter
_TOLERANCE_S = 0.05  # stamps may be ahead of the best moment of the link by this much
_FIRST_INTERVAL_S = 1 / 25
_SMALLEST_STEP_S = 1e-6

_SETTLING_S = 1.0  # at first, servers send their buffered packets in a burst
_SHORTEST_S = 1.0
_PROVEN_S = 10.0
_RATE_ERROR = 0.005  # 25 times the error of the worst clock
_LARGE_PICTURES_TAKE_LONGER = 0.6  # correlation of size and time since the previous picture


@dataclass(frozen=True)
class StreamMoment:
    """The position of a picture in stream time.

    Attributes:
        seconds: continuous stream time, strictly increasing; it runs at the rate of the stream's clock.
        lag_s: delay that the link has built up; an estimate if the stamp is doubtful.
        trusted: False if the time stamps are unusable and `seconds` follows the arrivals.
        moved_s: size of the jump of the stamps if a new time line starts with this picture; else 0.
    """

    seconds: float
    lag_s: float
    trusted: bool
    moved_s: float = 0.0


@dataclass(frozen=True)
class _Picture:
    stated_s: float
    arrival_s: float


class StreamClock:
    """Follows the time stamps of one connection.

    Args:
        start_s: stream time of the first picture.
    """

    def __init__(self, start_s: float = 0.0) -> None:
        self.link = LinkLag()
        self._start_s = start_s
        self._shift_s = 0.0
        self._seconds = start_s - _SMALLEST_STEP_S
        self._arrival_s: float | None = None
        self._good: _Picture | None = None
        self._good_s = 0.0  # last arrival at which the stamps were usable
        self._since_good = 0
        self._lag_s = 0.0
        self.interval_s = _FIRST_INTERVAL_S  # typical time between two pictures
        self._intervals: deque[float] = deque([_FIRST_INTERVAL_S], maxlen=15)
        self._lags: deque[tuple[float, float]] = deque(maxlen=60)
        self._line: list[_Picture] = []  # doubtful pictures that agree with each other
        self._rate = _RateCheck()

    @property
    def made_up(self) -> bool:
        """Whether the time stamps count pictures at a rate that is not the real one."""
        return self._rate.made_up

    def picture(self, stated_s: float | None, arrival_s: float, size_bytes: int = 0) -> StreamMoment:
        """Place the next picture, in order of presentation.

        Args:
            stated_s: time stamp of the stream in seconds; None if it has none.
            arrival_s: monotonic time at which the picture's packet arrived.
            size_bytes: size of that packet.
        """
        moved_s = 0.0
        if self._arrival_s is None:
            self._arrival_s = self._good_s = arrival_s
        passed_s, self._arrival_s = arrival_s - self._arrival_s, arrival_s
        if self._good is None and stated_s is not None:
            self._begin(stated_s, arrival_s, passed_s)
        if stated_s is None or self._is_doubtful(stated_s, arrival_s):
            moved_s = self._doubt(stated_s, arrival_s, passed_s)
        else:
            self._accept(_Picture(stated_s, arrival_s), size_bytes)
        trusted = self._since_good == 0 or arrival_s - self._good_s < _HOPELESS_S
        return StreamMoment(self._seconds, self._lag_s, trusted, moved_s)

    def _begin(self, stated_s: float, arrival_s: float, passed_s: float) -> None:
        """Use the first stamp. Pictures without a stamp may have come before."""
        self._shift_s = max(self._start_s, self._seconds + passed_s) - stated_s
        self._good = _Picture(stated_s - self.interval_s, arrival_s - self.interval_s)

    def _accept(self, picture: _Picture, size_bytes: int) -> None:
        """Use the stamp as it is."""
        assert self._good is not None
        step_s = picture.stated_s - self._good.stated_s
        if step_s <= _GAP_INTERVALS * self.interval_s * (1 + self._since_good) or len(self._intervals) < 3:
            self._intervals.append(step_s / (1 + self._since_good))
            self.interval_s = statistics.median(self._intervals)
        self._good, self._since_good, self._good_s = picture, 0, picture.arrival_s
        self._line.clear()
        self._advance_to(picture.stated_s + self._shift_s)
        self._lag_s = self.link.measure(picture.arrival_s - self._seconds, picture.arrival_s)
        self._lags.append((picture.arrival_s, self._lag_s))
        self._rate.add(picture, size_bytes)

    def _advance_to(self, seconds: float) -> None:
        self._seconds = max(seconds, self._seconds + _SMALLEST_STEP_S)

    def _is_doubtful(self, stated_s: float, arrival_s: float) -> bool:
        assert self._good is not None
        step_s = stated_s - self._good.stated_s
        passed_s = arrival_s - self._good.arrival_s
        if step_s <= 0:
            return True
        expected_s = self.link.expected_s(arrival_s)
        if expected_s is not None and step_s > _GAP_INTERVALS * self.interval_s * (1 + self._since_good):
            delay_s = arrival_s - (stated_s + self._shift_s)
            if delay_s < expected_s - max(_TOLERANCE_S, self.interval_s):
                return True
        if not self._line or not _agree(self._line[-1], stated_s, arrival_s, self.interval_s):
            return False
        # Both lines are possible; the nearer one is used.
        newest = self._line[-1]
        error_s = abs(stated_s - newest.stated_s - (arrival_s - newest.arrival_s))
        return error_s + self.interval_s / 2 < abs(step_s - passed_s)

    def _doubt(self, stated_s: float | None, arrival_s: float, passed_s: float) -> float:
        """Estimate the time of a picture with a doubtful stamp. Return the size of a jump that lasts, else 0."""
        self._since_good += 1
        hopeless = arrival_s - self._good_s >= _HOPELESS_S
        if stated_s is not None:
            if self._line and not _agree(self._line[-1], stated_s, arrival_s, self.interval_s):
                self._line.clear()
            self._line.append(_Picture(stated_s, arrival_s))
            first = self._line[0]
            stays_s = min(stated_s - first.stated_s, max(arrival_s - first.arrival_s, self.interval_s))
            if len(self._line) > 1 and (stays_s >= _STAYS_S or arrival_s - first.arrival_s >= _STAYS_S):
                return self._join(arrival_s)
        self._advance_to(self._seconds + (passed_s if hopeless else self.interval_s))
        expected_s = self.link.expected_s(arrival_s)
        if expected_s is not None and not hopeless:
            self._lag_s = max(0.0, arrival_s - self._seconds - expected_s)
        return 0.0

    def _join(self, arrival_s: float) -> float:
        """Follow the new time line. The lag is assumed to be that of the last second before the change."""
        newest = self._line[-1]
        recent = [lag_s for at_s, lag_s in self._lags if at_s >= self._good_s - 1.0]
        lag_s = min(recent, default=0.0)
        reference_s = self.link.expected_s(arrival_s) or 0.0
        if self.link.reference_s is None:
            reference_s = min(picture.arrival_s - self._seconds for picture in self._line)
        best_s = min(picture.arrival_s - picture.stated_s for picture in self._line)
        shift_s = best_s - reference_s - lag_s
        moved_s = self._shift_s - shift_s
        self._shift_s = shift_s
        self._good, self._since_good, self._good_s = newest, 0, arrival_s
        self._advance_to(newest.stated_s + shift_s)
        self._lag_s = self.link.measure(arrival_s - self._seconds, arrival_s)
        self._line.clear()
        self._lags.clear()
        if not self._rate.decided:
            self._rate = _RateCheck()
        return moved_s


def _agree(before: _Picture, stated_s: float, arrival_s: float, interval_s: float) -> bool:
    """Whether a picture can follow `before`: it is later, but not further ahead than its arrival allows."""
    step_s = stated_s - before.stated_s
    return 0 < step_s <= max(_GAP_INTERVALS * interval_s, arrival_s - before.arrival_s + _TOLERANCE_S)


class _RateCheck:
    """Compares the stated rate with the real one, from the first seconds of a connection until the result is clear."""

    def __init__(self) -> None:
        self.made_up = False
        self.decided = False
        self._begun_s = 0.0
        self._first: _Picture | None = None
        self._last: _Picture | None = None
        self._largest_gap_s = 0.0
        self._ahead: list[tuple[float, float]] = []
        self._gaps: deque[float] = deque(maxlen=100)
        self._sizes: deque[int] = deque(maxlen=100)

    def add(self, picture: _Picture, size_bytes: int) -> None:
        if self.decided:
            return
        if self._last is None:
            self._begun_s, self._last = picture.arrival_s, picture
        gap_s = picture.arrival_s - self._last.arrival_s
        self._last = picture
        self._largest_gap_s = max(self._largest_gap_s, gap_s)
        if picture.arrival_s - self._begun_s < _SETTLING_S:
            return
        if self._first is None:
            self._first = picture
            return
        self._gaps.append(gap_s)
        self._sizes.append(size_bytes)
        passed_s = picture.arrival_s - self._first.arrival_s
        ahead_s = picture.stated_s - self._first.stated_s - passed_s
        self._ahead.append((passed_s, ahead_s))
        self._decide(passed_s, ahead_s)

    def _decide(self, passed_s: float, ahead_s: float) -> None:
        if passed_s < _SHORTEST_S:
            return
        if passed_s >= _PROVEN_S and abs(ahead_s) < 0.1 + self._largest_gap_s:
            self.decided = True
        elif abs(ahead_s) > max(0.5 + 3 * self._largest_gap_s, _RATE_ERROR * passed_s):
            if self._parts_steadily(passed_s, ahead_s) and not self._large_pictures_take_longer():
                self.made_up = self.decided = True
            elif passed_s >= 2 * _PROVEN_S:
                self.decided = True

    def _parts_steadily(self, passed_s: float, ahead_s: float) -> bool:
        """Whether half of the difference existed after half of the time, so that it grows steadily."""
        half_s = next(ahead for passed, ahead in self._ahead if passed >= passed_s / 2)
        return 0.3 * abs(ahead_s) < abs(half_s) < 0.7 * abs(ahead_s)

    def _large_pictures_take_longer(self) -> bool:
        if len(self._gaps) < 5 or len(set(self._sizes)) < 2 or len(set(self._gaps)) < 2:
            return False
        return statistics.correlation(self._sizes, self._gaps) > _LARGE_PICTURES_TAKE_LONGER
