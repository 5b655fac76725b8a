"""The state of a source. The iterating thread writes it; any thread reads it.

The state is computed when it is read, from the time of the newest picture. So it is right even if the iterating thread
hangs in a decoder.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal

from pipeline.frames import CaptureClock, Frame
from pipeline.names import readable

State = Literal["connecting", "live", "late", "lost", "ended"]

_RATE_OVER_S = 2.0


@dataclass(frozen=True)
class StatusView:
    """The status at one moment.

    Attributes:
        state: connecting: no picture yet. live: pictures come. late: the newest picture is older than the age budget.
            lost: no picture comes. ended: there will be no more pictures.
        since_unix_ns: when this state was first seen, ns since 1970.
        frame_rate: pictures a second in the last two seconds.
        lag_s: lag of the newest picture; None where unknown.
        last_error: the last error, one sentence; None without an error.
        last_capture_unix_ns: capture time of the newest picture; None before the first.
        capture_clock: clock of the newest picture.
        clock_offset_s: constant error of the camera's clock; None where unknown.
        reconnects: how often a lost connection was opened again.
    """

    state: State
    since_unix_ns: int
    frame_rate: float
    lag_s: float | None
    last_error: str | None
    last_capture_unix_ns: int | None
    capture_clock: CaptureClock
    clock_offset_s: float | None
    reconnects: int


class SourceStatus:
    """Facts about one source.

    Args:
        silence_s: a source without a picture for this long is lost; None for sources that may be slow.
    """

    def __init__(self, silence_s: float | None = None) -> None:
        self._silence_s = silence_s
        self._lock = threading.Lock()
        self._arrivals_ns: deque[int] = deque(maxlen=1024)
        self._newest: Frame | None = None
        self._connected = False
        self._ended = False
        self._error: str | None = None
        self._reconnects = 0
        self._offset_s: float | None = None
        self._state: State = "connecting"
        self._since_unix_ns = time.time_ns()
        self._moved_ns = time.monotonic_ns()

    def connected(self) -> None:
        """A connection was opened, or opened again."""
        with self._lock:
            self._connected = True
            self._moved_ns = time.monotonic_ns()

    def picture(self, frame: Frame, offset_s: float | None = None) -> None:
        """A picture came; `offset_s` is the constant error of the camera's clock."""
        with self._lock:
            self._newest = frame
            self._connected = True
            self._offset_s = offset_s
            self._moved_ns = time.monotonic_ns()
            self._arrivals_ns.append(self._moved_ns)

    def failed(self, sentence: str) -> None:
        """The connection was lost, or could not be opened."""
        with self._lock:
            self._reconnects += self._connected
            self._connected = False
            self._error = sentence
            self._moved_ns = time.monotonic_ns()

    def warn(self, sentence: str) -> None:
        """Note a problem while the connection is still open."""
        with self._lock:
            self._error = sentence
            self._moved_ns = time.monotonic_ns()

    def ended(self, sentence: str | None = None) -> None:
        """There will be no more pictures; `sentence` is the reason if this is an error."""
        with self._lock:
            self._ended = True
            self._error = sentence or self._error

    def unmoved_s(self) -> float:
        """Return for how long the iterating thread has yielded no picture and tried no connection; 0 after the end."""
        with self._lock:
            return 0.0 if self._ended else (time.monotonic_ns() - self._moved_ns) / 1e9

    def view(self, budget_s: float = 0.0) -> StatusView:
        """Return the status now.

        Args:
            budget_s: the source is late if its newest picture is older than this; 0 for sources that are never late.
        """
        now_ns = time.monotonic_ns()
        with self._lock:
            state, sentence = self._state_at(now_ns, budget_s)
            if state != self._state:
                self._state, self._since_unix_ns = state, time.time_ns()
            recent = sum(now_ns - at_ns <= _RATE_OVER_S * 1e9 for at_ns in self._arrivals_ns)
            newest = self._newest
            return StatusView(
                state,
                self._since_unix_ns,
                recent / _RATE_OVER_S,
                None if newest is None else newest.lag_s,
                None if sentence is None else readable(sentence),
                None if newest is None else newest.capture_unix_ns,
                "receipt" if newest is None else newest.capture_clock,
                self._offset_s,
                self._reconnects,
            )

    def _state_at(self, now_ns: int, budget_s: float) -> tuple[State, str | None]:
        if self._ended:
            return "ended", self._error
        if self._newest is None:
            return "connecting", self._error
        silent_s = (now_ns - self._arrivals_ns[-1]) / 1e9
        if not self._connected:
            return "lost", self._error
        if self._silence_s is not None and silent_s > self._silence_s:
            return "lost", f"no picture for {silent_s:.0f} s although the connection is open"
        if budget_s > 0 and self._newest.age_s > budget_s:
            return "late", self._error
        return "live", self._error
