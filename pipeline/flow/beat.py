"""The steady beat: one status message per source every `beat_s`, whatever the source does."""

from __future__ import annotations

import time
from collections.abc import Iterable

from pipeline.flow.metrics import Metrics
from pipeline.sources import Source
from xpose_client.host import boot_id
from xpose_client.messages import SCHEMA, StatusMessage


class Beat:
    """Makes the status messages when they are due.

    Args:
        session: session of the messages.
        beat_s: seconds between two messages of a source.
        age_budget_s: a live source whose newest picture is older is late; 0 for never.
    """

    def __init__(self, session: int, beat_s: float, age_budget_s: float, metrics: Metrics) -> None:
        self._session = session
        self._beat_s = beat_s
        self._age_budget_s = age_budget_s
        self._metrics = metrics
        self._next_s = 0.0

    def due(self, sources: Iterable[Source], *, now: bool = False) -> list[StatusMessage]:
        """Return the messages of all sources if it is time, or at once where `now` says so; none otherwise."""
        now_s = time.monotonic()
        if not now and now_s < self._next_s:
            return []
        self._next_s = max(self._next_s + self._beat_s, now_s + self._beat_s / 2)
        return [self._message(source) for source in sources]

    def _message(self, source: Source) -> StatusMessage:
        view = source.status.view(self._age_budget_s if source.live else 0.0)
        return StatusMessage(
            schema=SCHEMA,
            session=self._session,
            host=boot_id(),
            source=source.name,
            state=view.state,
            since_unix_ns=view.since_unix_ns,
            publish_unix_ns=time.time_ns(),
            publish_monotonic_ns=time.monotonic_ns(),
            frame_rate=round(view.frame_rate, 2),
            lag_s=view.lag_s,
            drops=dict(self._metrics.drops(source.name)),
            last_error=view.last_error,
            last_capture_unix_ns=view.last_capture_unix_ns,
            capture_clock=view.capture_clock if source.live else "file",
            clock_offset_s=view.clock_offset_s,
            beat_s=self._beat_s,
            reconnects=view.reconnects,
        )
