"""The newest published frame of each source, for viewers.

The publishing stage stores references; nothing is copied, converted or encoded here. A viewer has its own thread and
always gets the newest frame, so a slow viewer skips frames and delays nothing.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.flow.publishing import Published


class Newest:
    """One frame per source, replaced by each newer one. All methods are for any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._stamp = 0
        self._ended = False
        self._of_source: dict[str, tuple[int, Published]] = {}

    def put(self, published: Published) -> None:
        """Replace the newest frame of its source, and wake waiting viewers."""
        with self._changed:
            self._stamp += 1
            self._of_source[published.source] = (self._stamp, published)
            self._changed.notify_all()

    def get(self, source: str) -> Published | None:
        """Return the newest frame of a source; None before its first frame, and after the source was removed."""
        with self._changed:
            found = self._of_source.get(source)
            return None if found is None else found[1]

    def wait(self, seen: int, timeout_s: float) -> tuple[int, dict[str, Published]]:
        """Wait for frames that are newer than the stamp `seen`.

        Args:
            seen: the stamp from the previous call; 0 for the first call.
            timeout_s: longest wait.
        Returns:
            The stamp for the next call, and the newest frame of each source with a frame newer than `seen`. After the
            time-out there may be none. After the end of the pipeline the call returns at once.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._stamp > seen, timeout_s)
            newer = {name: item for name, (stamp, item) in self._of_source.items() if stamp > seen}
            return self._stamp, newer

    def forget(self, source: str) -> None:
        """Drop the frame of a source that was removed."""
        with self._changed:
            self._of_source.pop(source, None)

    def end(self) -> None:
        """Note the end of the pipeline: `wait` returns at once from now on."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
