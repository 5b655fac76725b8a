"""Capture times of live pictures: the best available estimate, and the clock that it comes from.

sender    The sender's own clock, from its RTCP sender reports. FFmpeg converts them to the wall time of each packet.
stream    The stream's clock. It gives the delay that the link has built up since its best moment. The delay at that
          moment is unknown. If the sender is known to send reports and its first one is still missing, the first
          picture is assumed to be as old as the connection. It may be younger, but not older.
receipt   The time of arrival, if time stamps are made up or unusable.

`PictureClock` is pure logic: it maps arrivals to times and reads no clock itself, so tests can simulate any link.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from pipeline.frames import CaptureClock
from pipeline.sources.stream_clock import StreamClock, StreamMoment

logger = logging.getLogger(__name__)

ClockChoice = Literal["auto", "sender", "stream", "receipt"]

LARGEST_SENDER_DELAY_S = 5.0
"""A sender whose pictures seem older than this at the link's best moment has a wrong clock. So has one whose pictures
come from the future. A sender that was right before is believed for delays up to `LARGEST_KNOWN_DELAY_S`."""

LARGEST_KNOWN_DELAY_S = 60.0

_FUTURE_S = 0.1  # synchronised clocks differ by less than this
_SAME_S = 0.1  # reports that differ by less come from one clock
_STAYS_S = 0.9  # a report that contradicts the previous ones counts after this time
_OLD_REPORT_S = 10.0  # after a jump of the stream's time, a new report comes within this time
_REPORT_WAIT_S = 6.0  # stream time; a sender with reports sends the first one within it
_HOST_STEP_S = 0.1  # a larger change means that this machine's wall clock was set


@dataclass(frozen=True)
class Arrival:
    """The facts about a picture at the arrival of its packet.

    Attributes:
        stated_s: time stamp of the stream, seconds; None if it has none.
        monotonic_ns: arrival on this machine's monotonic clock.
        unix_ns: the same moment on this machine's wall clock.
        sender_unix_ns: the sender's wall clock at capture, from its reports; None before the first report.
        size_bytes: size of the packet.
    """

    stated_s: float | None
    monotonic_ns: int
    unix_ns: int
    sender_unix_ns: int | None = None
    size_bytes: int = 0


@dataclass(frozen=True)
class Stamp:
    """The times of a picture.

    Attributes:
        pts_s: continuous time since the first picture of the source, seconds, strictly increasing.
        capture_monotonic_ns: moment of capture on this machine's monotonic clock; never after the arrival.
        capture_unix_ns: the same moment as wall time.
        clock: origin of the capture time.
        lag_s: arrival minus capture. For `sender` it is the whole delay of the link, for `stream` the delay that the
            link has built up; None for `receipt`.
        uncertainty_s: possible error of `lag_s` because of clock drift; None if unknown.
    """

    pts_s: float
    capture_monotonic_ns: int
    capture_unix_ns: int
    clock: CaptureClock
    lag_s: float | None
    uncertainty_s: float | None


class PictureClock:
    """Computes the times of each picture of one live source, across connections.

    Args:
        choice: the clock to use; `auto` uses the best one. If the chosen clock is not available, the next one in the
            order sender, stream, receipt is used.
        label: name of the source in log messages.
    """

    def __init__(self, choice: ClockChoice = "auto", label: str = "source") -> None:
        self._choice = choice
        self._sender = _SenderClock(label, always=choice == "sender")
        self._stream = StreamClock()
        self._counts_pictures = False
        self._origin_ns: int | None = None
        self._opened_ns = 0
        self._first_ns: int | None = None  # first arrival of the connection
        self._last: tuple[float, float] | None = None  # stream time and arrival of the last picture
        self._pts_s = 0.0
        self._host_offset_ns: int | None = None

    @property
    def offset_s(self) -> float | None:
        """Constant error of the sender's clock (sender minus this machine); None if the clock is right or unknown."""
        return self._sender.offset_s

    @property
    def interval_s(self) -> float:
        """Typical time between two pictures of this connection."""
        return self._stream.interval_s

    def connect(self, opened_ns: int, *, counts_pictures: bool = False) -> None:
        """Begin a new connection. Its time stamps start at another zero.

        Args:
            opened_ns: monotonic time at which the connection was requested; its pictures were captured later.
            counts_pictures: the demuxer makes up the time stamps (FFmpeg's AVFMT_NOTIMESTAMPS).
        """
        self._opened_ns = opened_ns
        self._stream = StreamClock()
        self._sender.connect()
        self._counts_pictures = counts_pictures
        self._first_ns = None
        if self._last is not None:
            self._last = (float("-inf"), self._last[1])

    def stamp(self, arrival: Arrival) -> Stamp:
        """Return the times of the next picture, in order of presentation."""
        if self._origin_ns is None:
            self._origin_ns = arrival.monotonic_ns
        arrival_s = (arrival.monotonic_ns - self._origin_ns) / 1e9
        if self._first_ns is None:
            self._first_ns = arrival.monotonic_ns
        self._notice_host_step(arrival)
        moment = self._stream.picture(arrival.stated_s, arrival_s, arrival.size_bytes)
        usable = moment.trusted and not self._counts_pictures and not self._stream.made_up
        pts_s = self._next_pts_s(moment, arrival_s, usable)
        lag_s = self._sender.lag_s(arrival, moment, arrival_s) if moment.trusted else None
        if self._choice in ("auto", "sender"):
            if lag_s is not None:
                return _stamp(arrival, pts_s, "sender", lag_s, None)
            if self._sender.report_is_due and moment.seconds < _REPORT_WAIT_S:
                opening_s = max(0, self._first_ns - self._opened_ns) / 1e9
                return _stamp(arrival, pts_s, "stream", moment.lag_s + opening_s, opening_s)
        if self._choice == "receipt" or not (usable or (self._choice == "stream" and moment.trusted)):
            return _stamp(arrival, pts_s, "receipt", None, None)
        return _stamp(arrival, pts_s, "stream", moment.lag_s, self._stream.link.uncertainty_s)

    def _notice_host_step(self, arrival: Arrival) -> None:
        offset_ns = arrival.unix_ns - arrival.monotonic_ns
        if self._host_offset_ns is not None and abs(offset_ns - self._host_offset_ns) > _HOST_STEP_S * 1e9:
            self._sender.judge_again()
        self._host_offset_ns = offset_ns

    def _next_pts_s(self, moment: StreamMoment, arrival_s: float, usable: bool) -> float:
        """Advance by the step of the stream time, or of the arrivals if the stream time is unusable or restarts."""
        if self._last is not None:
            stream_step_s, step_s = moment.seconds - self._last[0], arrival_s - self._last[1]
            if usable and stream_step_s != float("inf"):
                step_s = stream_step_s
            self._pts_s += max(step_s, 1e-6)
        self._last = (moment.seconds, arrival_s)
        return self._pts_s


def _stamp(
    arrival: Arrival, pts_s: float, clock: CaptureClock, lag_s: float | None, uncertainty_s: float | None
) -> Stamp:
    lag_ns = round((lag_s or 0.0) * 1e9)
    return Stamp(pts_s, arrival.monotonic_ns - lag_ns, arrival.unix_ns - lag_ns, clock, lag_s, uncertainty_s)


class _SenderClock:
    """Follows the sender's wall clock and decides whether it is right.

    "Base" is the sender's wall time minus the stream time. It is constant except for drift. A wrong time stamp of a
    single picture shifts both times, so the base stays the same.
    """

    def __init__(self, label: str, always: bool) -> None:
        self._label = label
        self._always = always
        self._had_reports = False
        self._right: bool | None = None
        self._doubtful_since_s: float | None = None
        self._warned = False
        self.offset_s: float | None = None
        self.connect()

    def connect(self) -> None:
        """Begin a new connection. Stream times start at another zero; the facts about the sender's clock stay."""
        self._base_s: float | None = None
        self._other: tuple[float, float] | None = None  # a base that contradicts, and the time since then
        self._moved_base: tuple[float, float] | None = None  # base by reports from before a jump; valid until
        self._doubtful_since_s = None

    @property
    def report_is_due(self) -> bool:
        """Whether this sender is known to send reports and has not sent one on this connection."""
        return self._had_reports and self._right is not False and self._base_s is None

    def judge_again(self) -> None:
        """Forget the decision about the sender's clock, because this machine's clock was set."""
        self._right = None

    def lag_s(self, arrival: Arrival, moment: StreamMoment, arrival_s: float) -> float | None:
        """Return arrival minus capture by the sender's clock; None without a report, or if that clock is wrong."""
        if arrival.sender_unix_ns is not None:
            self._take_report(arrival.sender_unix_ns / 1e9 - moment.seconds, moment.moved_s, arrival_s)
        if self._base_s is None:
            return None
        lag_s = arrival.unix_ns / 1e9 - (moment.seconds + self._base_s)
        right = self._judge(lag_s - moment.lag_s, arrival_s)
        return max(0.0, lag_s) if right or self._always else None

    def _take_report(self, base_s: float, moved_s: float, arrival_s: float) -> None:
        self._had_reports = True
        if self._base_s is None or abs(base_s - self._base_s) <= _SAME_S:
            self._base_s, self._other = base_s, None
            return
        if moved_s:
            self._moved_base = (self._base_s + moved_s, arrival_s + _OLD_REPORT_S)
        if self._moved_base is not None:
            moved_base_s, until_s = self._moved_base
            if abs(base_s - moved_base_s) <= _SAME_S and arrival_s < until_s:
                return
        if self._other is None or abs(base_s - self._other[0]) > _SAME_S:
            self._other = (base_s, arrival_s)
        elif arrival_s - self._other[1] >= _STAYS_S:
            self._base_s, self._other = base_s, None

    def _judge(self, best_delay_s: float, arrival_s: float) -> bool:
        """Return whether the sender's clock is right, judged by the delay of the link at its best moment.

        A decision changes only if the evidence against it persists. In the meantime the clock is not used.
        """
        limit_s = LARGEST_KNOWN_DELAY_S if self._right else LARGEST_SENDER_DELAY_S
        right = -_FUTURE_S <= best_delay_s <= limit_s
        if not right:
            self.offset_s = -best_delay_s
        if right == self._right:
            self._doubtful_since_s = None
            return right
        if self._right is not None:
            if self._doubtful_since_s is None:
                self._doubtful_since_s = arrival_s
            if arrival_s - self._doubtful_since_s < _STAYS_S:
                return False
        self._right, self._doubtful_since_s = right, None
        if right:
            self.offset_s = None
        elif not self._warned:
            self._warned = True
            logger.warning(
                "%s: the camera's clock is %.1f s %s; its stream's clock is used instead. Set the camera's clock (NTP)",
                self._label, abs(best_delay_s), "ahead" if best_delay_s < 0 else "behind",
            )  # fmt: skip
        return right
