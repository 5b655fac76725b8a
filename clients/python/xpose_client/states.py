"""The state of each source, and whether its publisher is still there.

The publisher reports each source at a steady beat. A beat that does not come means that the publisher, its machine or
the network is gone: the source is silent.

A program may read its messages long after they came, so the time of reading is not used. The age of a status message is
computed from the publisher's monotonic clock: directly on the same machine. On another machine, the smallest difference
of the two clocks that was seen is used as their offset, because it belongs to the fastest delivery.
"""

from typing import Optional

from xpose_client.events import SourceState
from xpose_client.host import boot_id
from xpose_client.messages import StatusMessage

SILENT = "silent"
UNKNOWN = "unknown"
ENDED = "ended"
LATE = "late"

_BEATS_UNTIL_SILENT = 1.8
"""Below 2, so that a publisher of two beats per second is noticed within a second."""

_DRIFT = 0.001
"""Clocks of two machines drift by less than this fraction; the difference between them is followed at this rate."""


class _Source:
    """The last status of one source, and the time from which its publisher counts as silent."""

    def __init__(self, status: StatusMessage, now_s: float, before: "Optional[_Source]") -> None:
        sent_s = status.publish_monotonic_ns / 1e9
        offset_s = now_s - sent_s
        if status.host == boot_id():
            offset_s = 0.0
        elif before is not None and before.status.host == status.host:
            offset_s = min(offset_s, before.offset_s + _DRIFT * (now_s - before.read_s))
        self.status: StatusMessage = status
        self.offset_s: float = offset_s
        self.read_s: float = now_s
        self.silent_from_s = sent_s + offset_s + _BEATS_UNTIL_SILENT * status.beat_s
        self.reported: str = "" if before is None else before.reported

    def state(self, now_s: float) -> str:
        """Return the state at `now_s`. A source that has ended does not become silent."""
        if self.status.state != ENDED and now_s >= self.silent_from_s:
            return SILENT
        return self.status.state


class SourceStates:
    """States of all sources of a publisher. Times are seconds of `time.monotonic()`."""

    def __init__(self) -> None:
        self._sources: dict[str, _Source] = {}

    def take(self, status: StatusMessage, now_s: float) -> list[SourceState]:
        """Take a status message that was read at `now_s`; return the change of state that it reports, if any.

        A message that was sent again for another subscriber changes nothing.
        """
        before = self._sources.get(status.source)
        repeated = (
            before is not None
            and before.status.session == status.session
            and status.publish_monotonic_ns <= before.status.publish_monotonic_ns
        )
        if repeated:
            return []
        source = self._sources[status.source] = _Source(status, now_s, before)
        return self._report(source, status.state)

    def silences(self, now_s: float) -> list[SourceState]:
        """Return the sources that have become silent since the last call."""
        return [
            change
            for source in self._sources.values()
            if source.state(now_s) == SILENT
            for change in self._report(source, SILENT)
        ]

    def next_silence_s(self) -> Optional[float]:
        """Return when the next source becomes silent if nothing comes; None where none can."""
        times_s = [source.silent_from_s for source in self._sources.values() if source.reported not in (SILENT, ENDED)]
        return min(times_s) if times_s else None

    def state(self, source: str, now_s: float) -> str:
        """Return the state of `source`; "unknown" before its first status message."""
        known = self._sources.get(source)
        return UNKNOWN if known is None else known.state(now_s)

    def status(self, source: str) -> Optional[StatusMessage]:
        """Return the last status message of `source`; None before the first."""
        known = self._sources.get(source)
        return None if known is None else known.status

    def alive(self, now_s: float) -> bool:
        """Return whether the publisher reported any source within its beat."""
        return any(now_s < source.silent_from_s for source in self._sources.values())

    def late(self, now_s: float) -> bool:
        """Return whether any source is late."""
        return any(source.state(now_s) == LATE for source in self._sources.values())

    @staticmethod
    def _report(source: _Source, state: str) -> list[SourceState]:
        if source.reported == state:
            return []
        source.reported = state
        return [SourceState(source.status.source, state, source.status)]
